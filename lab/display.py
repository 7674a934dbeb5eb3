"""The live terminal: what runs now, against what, and what came of the last ones; plain lines where there is no TTY.

Promises: it only shows, and keeps nothing that anything else reads. What a trial or a model wrote appears as text,
bounded and without control characters, never as markup. The loss that it shows is read from progress lines, for the
eye alone. No line is wider than the window. That a dead stdout fails nothing is terminal.survive()'s work.
"""

import math
import os
import re
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lab import ledger
from lab.ledger import Experiment, Row, Status, one_line

SHOWN = 8             # experiments in the table
REDRAWS_A_S = 4
WIDE = 100            # columns from which the table has room for source, memory, tokens and time
STYLES = {Status.KEEP: "bold green", Status.CRASH: "red"}
PHASES = {"clock": "training", "score": "scoring", "witness": "witness"}  # event -> what the trial does from then on
_SHARE = re.compile(r"\b([0-9]{1,3})%")
_LOSS, _RATE = re.compile(r"loss ([0-9]{1,6}\.?[0-9]{0,6})"), re.compile(r"([0-9]{1,12}) tok/s")
Curve = list[tuple[float, float]]  # (second of training, loss)


@dataclass
class Running:
    """The trial in one slot."""

    number: int
    what: str             # number, description and source
    budget_s: float
    since: float          # monotonic, start of the phase
    phase: str = "starting"
    loss: str = ""
    rate: str = ""        # tokens a second
    memory: str = ""
    curve: Curve = field(default_factory=list)

    def seconds(self) -> float:
        """Of the present phase."""
        elapsed_s = time.monotonic() - self.since
        return min(self.budget_s, elapsed_s) if self.phase == "training" else elapsed_s


class Display:
    """A context: `say` leaves a line, the other calls change what is live."""

    def __init__(self, title: str, plain: bool | None = None):
        self.title, self.live = title, None
        self.plain = not can_draw() if plain is None else plain
        self.drawn: list[int] = []                  # columns of each line of the last frame
        self.history: Sequence[Experiment] = ()
        self.busy: Counter[int] = Counter()         # rows of each experiment that did not have their machine
        self.standing = "nothing is measured yet"   # the incumbent in words, made once a row
        self.running: dict[int, Running] = {}       # by slot
        self.rival: Curve = []                      # the incumbent's
        self.researcher, self.limits = "", ""
        self.began, self.trained_s, self.ended, self.usd = time.monotonic(), 0.0, 0, 0.0

    def __enter__(self) -> "Display":
        if not self.plain:
            from rich.console import Console
            from rich.live import Live

            console = Console()
            self.live = Live(console=console, get_renderable=lambda: self.draw(console), refresh_per_second=REDRAWS_A_S)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.live:
            from rich.text import Text

            self.live.refresh()  # sees a resize
            self.live.console.print(Text(one_line(line, 1000)))
        else:
            print(one_line(line, 1000), flush=True)

    def show_session(self, rows: Sequence[Row], log: str = "") -> None:
        """The session as it is; log: what the incumbent's own trial printed, for its losses."""
        self.history = ledger.experiments(row for row in rows if row.status is not Status.BUSY)
        self.busy = Counter(row.experiment for row in rows if row.status is Status.BUSY)
        self.standing, self.usd = standing(self.history), sum(row.usd for row in rows)
        self.rival = curve(log, rows[0].budget) if log and rows else self.rival

    def show_limits(self, text: str) -> None:
        """When it will stop, in words."""
        self.limits = one_line(text, 200)

    def show_researcher(self, text: str) -> None:
        self.researcher = one_line(text, 200)

    def trial_started(self, slot: int, number: int, description: str, source: str, budget_s: float) -> None:
        what = f"#{number} {one_line(description, 200)} ({one_line(source, 60)})"
        self.running[slot] = Running(number, what, budget_s, time.monotonic())
        if self.plain:
            self.say(what)

    def trial_event(self, slot: int, kind: str, value: object) -> None:
        """What the referee tells while a trial runs."""
        trial = self.running.get(slot)
        if trial is None:
            return
        if kind in PHASES:
            self.trained_s += trial.budget_s if kind == "score" else 0.0
            trial.phase, trial.since = PHASES[kind], time.monotonic()
        elif kind == "memory":
            trial.memory = f"{float(value):.1f} GB"
        elif kind == "line":
            loss, rate = _LOSS.search(str(value)), _RATE.search(str(value))
            trial.rate = f"{int(rate[1]):,} tok/s" if rate else trial.rate
            if loss and trial.phase == "training":
                trial.loss = loss[1]
                trial.curve.append((trial.seconds(), float(loss[1])))

    def row_written(self, row: Row, rows: Sequence[Row]) -> None:
        slot = next((slot for slot, trial in self.running.items() if trial.number == row.experiment), None)
        ended = self.running.pop(slot, None)
        if ended and row.status is Status.KEEP:
            self.rival = ended.curve
        self.ended += 1
        self.show_session(rows)
        if self.plain:
            value = "" if row.val_bpb is None else f" {row.val_bpb:.6f}"
            cost = f"{row.total_seconds:.0f} s, {row.tokens_m:.1f} M tokens"
            self.say("; ".join(filter(None, (f"#{row.experiment} {row.status}{value} in {cost}", self.standing,
                                             row.note))))

    # What is seen

    def facts(self, trial: Running) -> list[str]:
        """Phase, loss, rate and memory of a trial."""
        of = f" of {trial.budget_s:g}" if trial.phase == "training" else ""
        facts = [f"{trial.phase} {trial.seconds():.0f}{of} s", f"loss {trial.loss}" if trial.loss else ""]
        at = bisect_right(self.rival, (trial.seconds(), math.inf))
        if trial.phase == "training" and trial.loss and at:
            facts[-1] += f" (incumbent then {self.rival[at - 1][1]:.4f})"
        return [*facts, trial.rate, trial.memory]

    def pace(self) -> list[str]:
        """Rate and spend of this process, and its end."""
        elapsed_s = max(time.monotonic() - self.began, 1e-3)
        now_s = sum(trial.seconds() for trial in self.running.values() if trial.phase == "training")
        rate = f"{3600 * self.ended / elapsed_s:.1f} trials an hour" if self.ended else ""
        return [rate, f"{100 * (self.trained_s + now_s) / elapsed_s:.0f} % of the time training",
                f"${self.usd:.2f} spent", self.limits]

    def draw(self, console):
        """The frame. A narrower window has wrapped the old one to more lines, which are erased here first."""
        from rich.control import Control
        from rich.segment import ControlType, Segment

        n_more = sum((n - 1) // console.width for n in self.drawn if n)
        up = (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)
        console.control(Control(ControlType.CARRIAGE_RETURN, *up * n_more))
        frame = self.render(console.width, console.height)
        self.drawn = [Segment.get_line_length(line) for line in console.render_lines(frame, pad=False)]
        return frame

    def render(self, width: int, height: int = 50):
        """All that is live, no line wider than `width`; a low window shows fewer trials, then fewer experiments."""
        from rich.console import Group

        above = lines([self.title, *self.standing.split(", ")], width)
        below = lines([self.researcher], width, "dim") + lines(self.pace(), width, "dim")
        room = height - len(above) - len(below) - 1  # the cursor has a line
        blocks = [self.block(trial, width) for _, trial in sorted(self.running.items())]
        n_shown = len(blocks)
        while n_shown > 1 and sum(map(len, blocks[:n_shown])) + (n_shown < len(blocks)) > room:
            n_shown -= 1
        running = sum(blocks[:n_shown], [])
        if n_shown < len(blocks):
            running += lines([f"and {len(blocks) - n_shown} more trials"], width, "dim")
        room -= len(running) + 1  # the table's head
        table = [recent(self.history[-min(SHOWN, room):], self.busy, width)] if room > 0 else []
        return Group(*above, *table, *running, *below)

    def block(self, trial: Running, width: int) -> list:
        from rich.text import Text

        share = {"starting": 0.0, "training": trial.seconds() / trial.budget_s}.get(trial.phase, 1.0)
        done = min(width, int(width * share))
        bar = Text.assemble(("━" * done, "cyan"), ("━" * (width - done), "bright_black"))
        return [*lines([trial.what], width, "bold"), bar, *lines(self.facts(trial), width)]


def can_draw() -> bool:
    """Whether stdout is a terminal that moves its cursor and has the characters of a bar."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return sys.stdout.isatty() and not dumb and "utf" in (sys.stdout.encoding or "utf-8").lower()


def curve(log: str, budget_s: float) -> Curve:
    """(second, loss) from the progress lines of an earlier trial, which name the spent share of the budget."""
    found = ((_SHARE.search(line), _LOSS.search(line)) for line in log.splitlines())
    return [(int(share[1]) / 100 * budget_s, float(loss[1])) for share, loss in found if share and loss]


def standing(history: Sequence[Experiment]) -> str:
    """The incumbent beside the baseline, with the measured noise."""
    best = ledger.incumbent(history)
    if best is None or best.val_bpb is None:
        return "no incumbent yet"
    text = f"incumbent #{best.number} {best.val_bpb:.6f}"
    if best is not history[0] and history[0].val_bpb is not None:
        text += f", {best.val_bpb - history[0].val_bpb:+.6f} since the baseline"
    sigma = ledger.sigma(history)
    return text + (", noise not measured yet" if sigma is None else f", noise {sigma:.6f}")


def lines(facts: Sequence[str], width: int, style: str = "") -> list:
    from rich.text import Text

    return [Text(line, style, no_wrap=True, overflow="ellipsis") for line in pack(facts, width)]


def pack(facts: Sequence[str], width: int) -> list[str]:
    """The facts on as few lines as they fit; one that is longer than a line has a line of its own."""
    from rich.cells import cell_len

    packed: list[str] = []
    for fact in filter(None, facts):
        if packed and cell_len(packed[-1]) + 2 + cell_len(fact) <= width:
            packed[-1] += f", {fact}"
        else:
            packed.append(fact)
    return packed


def recent(history: Sequence[Experiment], busy: Mapping[int, int], width: int):
    """These experiments as a table that drops columns where the window is narrow."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), width=width, show_edge=False, header_style="dim")
    names = ("#", "val_bpb", "status", "description", "source", "GB", "M tok", "s")[: None if width >= WIDE else 4]
    for name in names:
        ratio = 1 if name == "description" else None
        side = "left" if name in ("status", "description", "source") else "right"
        table.add_column(name, justify=side, ratio=ratio, no_wrap=True, overflow="ellipsis")
    for experiment in history:
        row = experiment.own
        status = one_line(row.status, 10) + (f" x{len(experiment.rows)}" if len(experiment.rows) > 1 else "")
        status += f" busy x{busy[experiment.number]}" if busy[experiment.number] else ""
        value = "" if experiment.val_bpb is None else f"{experiment.val_bpb:.6f}"
        cells = [str(experiment.number), value, status, one_line(row.description, 200), one_line(row.source, 20),
                 f"{row.memory_gb:.1f}", f"{row.tokens_m:.1f}", f"{row.total_seconds:.0f}"]
        table.add_row(*map(Text, cells[: len(names)]), style=STYLES.get(row.status, ""))
    return table
