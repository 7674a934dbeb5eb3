"""What the model has cost in this session: by the calls on disk, and by the rows where those are
gone.

Promises: what was billed is never forgotten, and each dollar stands in one row of the model's at
most.
"""

from collections.abc import Iterable
from pathlib import Path

from lab.ledger import Row
from lab.memory import parse_objects


class Account:
    """Dollars of one session. It spends nothing itself."""

    def __init__(self, calls: Path, rows: Iterable[Row]):
        self.calls, self.n_read, self.called_usd = calls, 0, 0.0
        paid_usd = sum(row.usd for row in rows)
        self.lost_usd = max(0.0, paid_usd - self._read_on())   # in a row, and its calls are gone
        self.owed_usd = self.called_usd + self.lost_usd - paid_usd  # billed, and in no row yet

    def spent_usd(self) -> float:
        return self.lost_usd + self._read_on()

    def owe(self, usd: float) -> None:
        """Billed for what became no row: the model's next one pays."""
        self.owed_usd += usd

    def settle(self) -> float:
        """What the model's next row pays for earlier calls."""
        usd, self.owed_usd = self.owed_usd, 0.0
        return usd

    def _read_on(self) -> float:
        """Dollars of all calls. Only what was written since the last reading is read."""
        size = self.calls.stat().st_size if self.calls.is_file() else 0
        if size < self.n_read:  # the folder was deleted; the money is spent all the same
            self.n_read = 0
        if size > self.n_read:
            with open(self.calls, "rb") as file:
                file.seek(self.n_read)
                data = file.read(size - self.n_read)
            whole = data[: data.rfind(b"\n") + 1]
            self.n_read += len(whole)
            self.called_usd += sum(float(call.get("usd") or 0) for call in parse_objects(whole))
        return self.called_usd
