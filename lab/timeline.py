"""One chronology of a session: what was known when each row was written, for the prompt, the report and the display.

The order is the order of results.tsv. Clocks are set back, so `when` is for reading only. A pure function of the rows;
it decides nothing and prints nothing.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lab.ledger import Row, Status


@dataclass(frozen=True, slots=True)
class Moment:
    """One row on the validation split, and the incumbent's estimate around it."""

    row: Row
    is_own: bool              # the experiment's own row, not another trial of its commit
    place: int                # experiments before this one: its place on an axis
    against: int | None       # number of the incumbent that it was judged against; None for the baseline
    before: float | None      # that incumbent's estimate when the row was judged
    after: float | None       # the incumbent's estimate once the row counted
    n_trials: int             # trials behind `after`

    @property
    def delta(self) -> float | None:
        """val_bpb less the incumbent's estimate at the time; negative is a gain."""
        if self.row.val_bpb is None or self.before is None:
            return None
        return self.row.val_bpb - self.before


def timeline(rows: Sequence[Row]) -> list[Moment]:
    """Every row that counts on the validation split, in the order of the file."""
    moments: list[Moment] = []
    values: dict[int, list[float]] = {}  # of each experiment, so far
    kept: int | None = None
    for row in rows:
        if row.split != "val" or row.status is Status.BUSY:
            continue
        is_own = row.experiment not in values
        # With several trials in flight the parent may no longer be the incumbent; the row was judged against that.
        rival = kept if is_own else None
        before = _mean(values.get(rival, ())) if rival is not None else None
        mine = values.setdefault(row.experiment, [])
        if row.val_bpb is not None:
            mine.append(row.val_bpb)
        if is_own and row.status is Status.KEEP:
            kept = row.experiment
        known = values.get(kept, ()) if kept is not None else ()
        moments.append(Moment(row, is_own, len(values) - 1, rival, before, _mean(known), len(known)))
    return moments


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
