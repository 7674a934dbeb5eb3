"""The live terminal: what runs now, against what, and what came of the last ones; plain lines where there is no TTY.

Promises: it only shows. What a trial or a model wrote appears as text, bounded and without control characters, never as
markup; the loss it shows is read from progress lines for the eye alone. No line is wider than the window, at any width.
It keeps no state that anything else reads.
"""

import re
import sys
import time
from collections.abc import Sequence

from lab import ledger
from lab.ledger import Experiment, Row, one_line

SHOWN = 8             # experiments in the table
REDRAWS_A_S = 4
WIDE = 100            # columns from which the table has room for source, memory and time
STYLES = {"keep": "bold green", "crash": "red", "discard": ""}
_SHARE = re.compile(r"\b([0-9]{1,3})%")
_LOSS, _RATE = re.compile(r"loss ([0-9]{1,6}\.?[0-9]{0,6})"), re.compile(r"([0-9]{1,12}) tok/s")


class Display:
    """A context: `say` leaves a line, the other calls change what is live."""

    def __init__(self, title: str, plain: bool | None = None):
        self.title, self.plain = title, not sys.stdout.isatty() if plain is None else plain
        self.live = None
        self.history: Sequence[Experiment] = ()
        self.standing = "nothing is measured yet"                # the incumbent in words, made once a row
        self.number, self.now, self.phase = 0, "", ""            # the trial under way
        self.status, self.stops = "", ""                         # the researcher; the user's limits
        self.budget_s, self.clock, self.loss, self.rate, self.memory = 0.0, 0.0, "", "", ""
        self.began, self.busy_s, self.ended, self.usd = time.monotonic(), 0.0, 0, 0.0
        self.curves: dict[int, list[tuple[float, float]]] = {}   # (second, loss): this trial's and the incumbent's

    def __enter__(self) -> "Display":
        if not self.plain:
            from rich.console import Console
            from rich.live import Live

            console = Console()
            self.live = Live(console=console, get_renderable=lambda: self.render(console.width, console.height),
                             refresh_per_second=REDRAWS_A_S)
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

    def start(self, history: Sequence[Experiment], log: str = "") -> None:
        """The session as it stands; log: what the incumbent's own trial printed, for its losses."""
        self.history = history
        if best := ledger.incumbent(history):
            self.curves[best.number] = curve(log, best.own.budget)
        self.standing = standing(history)
        self.usd = sum(row.usd for experiment in history for row in experiment.rows)

    def limits(self, text: str) -> None:
        """When it will stop, in words."""
        self.stops = one_line(text, 200)

    def researcher(self, status: str) -> None:
        self.status = one_line(status, 200)

    def experiment_started(self, number: int, description: str, source: str, budget_s: float) -> None:
        self.number, self.budget_s, self.clock = number, budget_s, 0.0
        self.loss, self.rate, self.memory = "", "", ""
        self.now, self.phase = f"#{number} {one_line(description, 200)} ({one_line(source, 60)})", "starting"
        if self.plain:
            self.say(self.now)

    def event(self, kind: str, value: object) -> None:
        """What the referee tells while a trial runs."""
        if kind == "clock":
            self.clock, self.phase = time.monotonic(), "training"
            self.curves = {n: curve for n, curve in self.curves.items() if n == best_number(self.history)}
            self.curves[self.number] = []
        elif kind == "score":
            self.phase, self.busy_s = "scoring", self.busy_s + self.budget_s
        elif kind == "memory":
            self.memory = f"{float(value):.1f} GB"
        elif kind == "line":
            loss, rate = _LOSS.search(str(value)), _RATE.search(str(value))
            self.rate = f"{int(rate[1]):,} tok/s" if rate else self.rate
            if loss and self.phase == "training":
                self.loss = loss[1]
                self.curves[self.number].append((time.monotonic() - self.clock, float(loss[1])))

    def experiment_ended(self, row: Row, history: Sequence[Experiment]) -> None:
        self.history, self.now, self.phase = history, "", ""
        self.standing, self.ended, self.usd = standing(history), self.ended + 1, self.usd + row.usd
        if self.plain:
            value = "" if row.val_bpb is None else f" {row.val_bpb:.6f}"
            self.say(f"#{row.experiment} {row.status}{value} in {row.total_seconds:.0f} s; {self.standing}" +
                     (f"; {row.note}" if row.note else ""))

    # What is seen ----------------------------------------------------------------------------------------------------

    def facts(self) -> list[str]:
        """The trial under way."""
        spent_s = min(self.budget_s, time.monotonic() - self.clock) if self.phase == "training" else 0.0
        facts = [f"{self.phase} {spent_s:.0f} of {self.budget_s:g} s" if self.phase == "training" else self.phase]
        if self.loss:
            facts.append(f"loss {self.loss}{self.rival()}")
        return [*facts, self.rate, self.memory]

    def rival(self) -> str:
        """The incumbent's loss at the same second of its own trial, if it ran in this process."""
        best = best_number(self.history)
        elapsed_s = time.monotonic() - self.clock
        past = [loss for second, loss in self.curves.get(best, []) if second <= elapsed_s]
        return f" (incumbent then {past[-1]:.4f})" if past and best != self.number else ""

    def pace(self) -> list[str]:
        """Rate and spend of this process, and its end."""
        elapsed_s = max(time.monotonic() - self.began, 1e-3)
        running_s = min(self.budget_s, time.monotonic() - self.clock) if self.phase == "training" else 0.0
        rate = f"{3600 * self.ended / elapsed_s:.1f} trials an hour" if self.ended else ""
        return [rate, f"{100 * (self.busy_s + running_s) / elapsed_s:.0f} % of the time training",
                f"${self.usd:.2f} spent", self.stops]

    def render(self, width: int, height: int = 50):
        """All that is live, no line wider than `width`; a low window shows fewer of the last experiments."""
        from rich.console import Group
        from rich.text import Text

        def lines(facts: Sequence[str], style: str = "") -> list[Text]:
            return [Text(line, style, no_wrap=True, overflow="ellipsis") for line in pack(facts, width)]

        above, below = lines([self.title, *self.standing.split(", ")]), []
        if self.now:
            spent_s = min(self.budget_s, time.monotonic() - self.clock) if self.phase == "training" else 0.0
            spent_s = self.budget_s if self.phase == "scoring" else spent_s
            done = min(width, int(width * spent_s / self.budget_s)) if self.budget_s else 0
            bar = Text.assemble(("━" * done, "cyan"), ("━" * (width - done), "bright_black"))
            below = [*lines([self.now], "bold"), bar, *lines(self.facts())]
        below += [*lines([self.status], "dim"), *lines(self.pace(), "dim")]
        room = height - len(above) - len(below) - 2  # the table's head, and the cursor's line
        return Group(*above, *([recent(self.history[-min(SHOWN, room):], width)] if room > 0 else []), *below)


def curve(log: str, budget_s: float) -> list[tuple[float, float]]:
    """(second, loss) from the progress lines of an earlier trial, which name the spent share of the budget."""
    found = ((_SHARE.search(line), _LOSS.search(line)) for line in log.splitlines())
    return [(int(share[1]) / 100 * budget_s, float(loss[1])) for share, loss in found if share and loss]


def best_number(history: Sequence[Experiment]) -> int | None:
    best = ledger.incumbent(history)
    return best.number if best else None


def standing(history: Sequence[Experiment]) -> str:
    """The incumbent beside the baseline, with the measured noise."""
    best = ledger.incumbent(history)
    if best is None or best.val_bpb is None:
        return "no incumbent yet"
    text = f"incumbent #{best.number} {best.val_bpb:.6f}"
    if best.number != history[0].number and history[0].val_bpb is not None:
        text += f", {best.val_bpb - history[0].val_bpb:+.6f} since the baseline"
    sigma = ledger.sigma(history)
    return text + (", noise not measured yet" if sigma is None else f", noise {sigma:.6f}")


def pack(facts: Sequence[str], width: int) -> list[str]:
    """The facts on as few lines as they fit; one that is longer than a line stands alone."""
    from rich.cells import cell_len

    packed: list[str] = []
    for fact in filter(None, facts):
        if packed and cell_len(packed[-1]) + 2 + cell_len(fact) <= width:
            packed[-1] += f", {fact}"
        else:
            packed.append(fact)
    return packed


def recent(history: Sequence[Experiment], width: int):
    """The last experiments as a table that drops columns where the window is narrow."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), width=width, show_edge=False, header_style="dim")
    for name in ("#", "val_bpb"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("description", ratio=1, no_wrap=True, overflow="ellipsis")
    if width >= WIDE:
        table.add_column("source", no_wrap=True, max_width=20, overflow="ellipsis")
        table.add_column("GB", justify="right", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
    for experiment in history:
        row = experiment.own
        again = f" x{len(experiment.rows)}" if len(experiment.rows) > 1 else ""
        value = "" if experiment.val_bpb is None else f"{experiment.val_bpb:.6f}"
        cells = [str(experiment.number), value, one_line(row.status, 10) + again, one_line(row.description, 200)]
        if width >= WIDE:
            cells += [one_line(row.source, 40), f"{row.memory_gb:.1f}", f"{row.total_seconds:.0f}"]
        table.add_row(*(Text(cell) for cell in cells), style=STYLES.get(row.status, ""))
    return table
