"""The live terminal: what runs now, against what, and what came of the last ones; plain lines where there is no TTY.

Promises: it only shows. What a trial or a model wrote appears as text, bounded and without control characters, never as
markup; the loss it shows is read from progress lines for the eye alone. It keeps no state that anything else reads.
"""

import re
import sys
import time
from collections.abc import Sequence

from lab import ledger
from lab.ledger import Experiment, Row, one_line

SHOWN = 8             # experiments in the table
REDRAWS_A_S = 4
_LOSS, _RATE = re.compile(r"loss ([0-9.]+)"), re.compile(r"([0-9]+) tok/s")


class Display:
    """A context: `say` leaves a line, the other calls change what is live."""

    def __init__(self, title: str, plain: bool | None = None):
        self.title, self.plain = title, not sys.stdout.isatty() if plain is None else plain
        self.live = None
        self.history: Sequence[Experiment] = ()
        self.now, self.status, self.phase = "", "", ""
        self.budget_s, self.clock, self.loss, self.rate = 0.0, 0.0, "", ""
        self.began, self.busy_s = time.monotonic(), 0.0
        self.curves: dict[int, list[tuple[float, float]]] = {}  # loss by second, for the one beside it
        self.number = 0

    def __enter__(self) -> "Display":
        if not self.plain:
            from rich.live import Live

            self.live = Live(get_renderable=self.render, refresh_per_second=REDRAWS_A_S)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.live:
            from rich.text import Text

            self.live.console.print(Text(one_line(line, 1000)))
        else:
            print(one_line(line, 1000), flush=True)

    def start(self, history: Sequence[Experiment]) -> None:
        self.history = history

    def experiment_started(self, number: int, description: str, source: str, budget_s: float) -> None:
        self.number, self.budget_s, self.clock, self.loss, self.rate = number, budget_s, 0.0, "", ""
        self.now, self.phase = f"#{number} {one_line(description, 200)} ({source})", "starting"
        if self.plain:
            self.say(self.now)

    def event(self, kind: str, value: object) -> None:
        """What the referee tells while a trial runs."""
        if kind == "clock":
            self.clock, self.phase = time.monotonic(), "training"
            self.curves = {n: curve for n, curve in self.curves.items() if n in (self.number, self.best_number())}
            self.curves[self.number] = []
        elif kind == "score":
            self.phase, self.busy_s = "scoring", self.busy_s + self.budget_s
        elif kind == "line":
            loss, rate = _LOSS.search(str(value)), _RATE.search(str(value))
            self.rate = rate[1] if rate else self.rate
            if loss and self.clock:
                self.loss = loss[1]
                self.curves[self.number].append((time.monotonic() - self.clock, float(loss[1])))

    def experiment_ended(self, row: Row, history: Sequence[Experiment]) -> None:
        self.history, self.now, self.phase = history, "", ""
        if self.plain:
            value = "        " if row.val_bpb is None else f"{row.val_bpb:.6f}"
            self.say(f"  {row.status:8s}{value}  {row.total_seconds:.0f} s  {row.note}")

    def researcher(self, status: str) -> None:
        self.status = status

    # What is seen ----------------------------------------------------------------------------------------------------

    def best_number(self) -> int | None:
        best = ledger.incumbent(self.history)
        return best.number if best else None

    def rival(self) -> str:
        """The incumbent's loss at the same second of its own trial, if it ran in this process."""
        curve = self.curves.get(self.best_number(), [])
        elapsed = time.monotonic() - self.clock
        past = [loss for second, loss in curve if second <= elapsed]
        return f" (incumbent then {past[-1]:.4f})" if past and self.best_number() != self.number else ""

    def gain(self) -> str:
        """The incumbent beside the baseline, with the measured noise."""
        best = ledger.incumbent(self.history)
        if best is None:
            return "no incumbent yet"
        text = f"incumbent #{best.number} val_bpb {best.val_bpb:.6f}"
        if best.number and self.history[0].val_bpb is not None:
            text += f", {best.val_bpb - self.history[0].val_bpb:+.6f} since the baseline"
        noise = ledger.sigma(self.history)
        return text + (f", noise {noise:.6f}" if noise is not None else ", noise not measured yet")

    def pace(self) -> str:
        """Rate and spend of this process."""
        hours = (time.monotonic() - self.began) / 3600
        usd = sum(row.usd for experiment in self.history for row in experiment.rows)
        return f"{self.busy_s / 36 / hours:.0f} % of the time training, ${usd:.2f} spent in all"

    def render(self):
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1), expand=True, show_edge=False)
        for name, justify in (("#", "right"), ("val_bpb", "right"), ("status", "left")):
            table.add_column(name, justify=justify, no_wrap=True)
        table.add_column("description", ratio=1, no_wrap=True, overflow="ellipsis")
        for experiment in self.history[-SHOWN:]:
            value = "" if experiment.val_bpb is None else f"{experiment.val_bpb:.6f}"
            style = {"keep": "bold green", "crash": "red"}.get(experiment.status, "")
            table.add_row(str(experiment.number), value, experiment.status, Text(experiment.own.description),
                          style=style)
        lines = [Text(f"{self.title}: {self.gain()}", overflow="ellipsis", no_wrap=True), table]
        if self.now:
            spent = min(self.budget_s, time.monotonic() - self.clock) if self.phase == "training" else 0.0
            spent = self.budget_s if self.phase == "scoring" else spent
            facts = [self.phase, f"{spent:.0f} of {self.budget_s:g} s"]
            facts += [f"loss {self.loss}{self.rival()}"] if self.loss else []
            facts += [f"{self.rate} tok/s"] if self.rate else []
            lines += [Text(self.now, style="bold", overflow="ellipsis", no_wrap=True),
                      ProgressBar(total=self.budget_s or 1.0, completed=spent),
                      Text(", ".join(facts), overflow="ellipsis", no_wrap=True)]
        for text in filter(None, (self.status, self.pace())):
            lines.append(Text(text, style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*lines)
