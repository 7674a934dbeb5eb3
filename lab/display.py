"""The live terminal: the trials that run, the incumbent and the last experiments; or plain lines.

Promises: it only shows, and keeps nothing that anything else reads. What a trial or a model wrote
appears as text, bounded and without control characters, never as markup. No line is wider than the
window. A dead stdout fails nothing: that is terminal.survive()'s work.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from rich import get_console
from rich.cells import cell_len
from rich.console import Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from lab import ledger
from lab.ledger import Experiment, Row, Status, one_line

SHOWN = 8             # experiments in the table
FEW, MANY = 2, 8      # up to FEW trials have several lines each, up to MANY one each; the others are counted
SILENCE_S = 3.0       # a phase says at least this often that it goes on
WIDE = 100            # columns from which an experiment's line has room for tokens, time and memory
STYLES = {Status.KEEP: "bold green", Status.CRASH: "red"}
PHASES = {"clock": "training", "score": "scoring", "witness": "witness", "profile": "profile"}  # event -> phase
PROGRESS = re.compile(r"\b([0-9]{1,3})%.{0,99}?loss ([0-9]{1,6}\.?[0-9]{0,6})")  # in a line
Curve = dict[int, float]  # percent of the budget -> loss


@dataclass(frozen=True)
class Running:
    """The trial in one slot."""

    number: int
    what: str             # number, description and source
    budget_s: float
    since: float          # monotonic, start of the phase
    phase: str = "starting"
    said: str = ""        # its last line
    curve: Curve = field(default_factory=dict)
    memory: str = ""

    def seconds(self) -> float:
        """Of the present phase."""
        return time.monotonic() - self.since


class Display:
    """A context: `say` leaves a line, the other calls change what is live."""

    def __init__(self, title: str, plain: bool | None = None):
        self.title, self.live = title, None
        self.plain = not can_draw() if plain is None else plain
        self.drawn: list[int] = []                  # columns of each line of the last frame
        self.history: Sequence[Experiment] = ()
        self.standing = ""                          # the incumbent in words, made once a row
        self.running: dict[int, Running] = {}       # by slot
        self.rival: Curve = {}                      # the incumbent's
        self.researcher, self.limits, self.since = "", "", 0.0
        self.began, self.ended, self.usd = 0.0, 0, 0.0  # began: its first trial; usd: of all rows

    def __enter__(self) -> "Display":
        if not self.plain:
            self.live = Live(get_renderable=self.draw, vertical_overflow="crop")
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.live:
            self.live.refresh()  # sees a resize
            self.live.console.print(Text(one_line(line, 1000)))
        else:
            print(one_line(line, 1000), flush=True)

    def show_session(self, rows: Sequence[Row], log: str = "") -> None:
        """The session as it is; log: what the incumbent's own trial printed, for its losses."""
        self.history = ledger.experiments(rows)
        self.standing, self.usd = standing(self.history), sum(row.usd for row in rows)
        self.rival = curve(log) or self.rival

    def show_limits(self, text: str) -> None:
        self.limits = one_line(text, 200)
        if self.plain:
            self.say(self.limits)

    def show_researcher(self, text: str) -> None:
        """What the researcher does now; "" for nothing."""
        before, self.researcher, self.since = self.researcher, one_line(text, 200), time.monotonic()
        if self.plain and self.researcher != before:
            self.say(self.researcher or f"{before}: over")

    def show_end(self) -> None:
        """Nothing runs any more, and nobody is asked: the last frame stays on the screen."""
        self.running.clear()
        self.researcher = self.limits = ""

    def trial_started(self, slot: int, number: int, description: str, source: str, budget_s: float) -> None:
        what = f"#{number} {one_line(description, 200)} ({one_line(source, 60)})"
        self.began = self.began or time.monotonic()
        self.running[slot] = Running(number, what, budget_s, time.monotonic())
        if self.plain:
            self.say(what)

    def trial_event(self, slot: int, kind: str, value: object) -> None:
        """What the referee tells while a trial runs."""
        trial = self.running.get(slot)
        if trial is None:
            return
        if kind in PHASES:
            trial = replace(trial, phase=PHASES[kind], since=time.monotonic())
            if self.plain:
                self.say(f"#{trial.number} {trial.phase}")
        elif kind == "memory":
            trial = replace(trial, memory=f"{float(value):.1f} GB")
        elif kind == "line":
            trial = replace(trial, said=one_line(str(value), 200), curve=trial.curve | curve(str(value)))
        self.running[slot] = trial

    def slot_lost(self, slot: int, line: str) -> None:
        self.running.pop(slot, None)
        self.say(line)

    def row_written(self, slot: int, row: Row, rows: Sequence[Row]) -> None:
        """A trial's row, which ran in this slot."""
        ended = self.running.pop(slot, None)
        if ended and row.status is Status.KEEP:
            self.rival = ended.curve
        self.ended += row.status is not Status.BUSY
        self.show_session(rows)
        if self.plain:
            value = "" if row.val_bpb is None else f" {row.val_bpb:.6f}"
            cost = f"{row.total_seconds:.0f} s, {row.tokens_m:.1f} M tokens"
            facts = f"#{row.experiment} {row.status}{value} in {cost}", self.standing, row.note
            self.say("; ".join(filter(None, facts)))

    def facts(self, trial: Running) -> list[str]:
        """Of a trial; at the end, the incumbent's loss after the same share of the budget."""
        of = f" of {trial.budget_s:g}" if trial.phase == "training" else ""
        percent = max(trial.curve, default=-1)
        then = [loss for earlier, loss in self.rival.items() if earlier <= percent]
        rival = f"incumbent then {then[-1]:.4f}" if then and trial.phase == "training" else ""
        return [f"{trial.phase} {trial.seconds():.0f}{of} s", trial.memory, trial.said, rival]

    def brief(self, slot: int, trial: Running, width: int) -> Text:
        """One of many trials on a line of its own: its number, facts, the incumbent then, what it is."""
        phase, _, said, rival = self.facts(trial)
        progress = PROGRESS.search(said)
        facts = phase, said[progress.start():] if progress else said, rival.removeprefix("incumbent ")
        what = trial.what.partition(" ")[2]
        return lines([f"{slot:2} #{trial.number} {', '.join(filter(None, facts))}  {what}"], width)[0]

    def draw(self) -> Group:
        """The frame. A narrower window has wrapped the old one: those lines are erased first."""
        console = get_console()
        n_more = sum((n - 1) // console.width for n in self.drawn if n)
        up = (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)
        console.control(Control(ControlType.CARRIAGE_RETURN, *up * n_more))
        frame = self.render(console.width)
        self.drawn = [min(line.cell_len, console.width) for line in frame[: console.height]]
        return Group(*frame)

    def render(self, width: int) -> list[Text]:
        """All that is live, to be cut at `width`. A low window cuts off the oldest experiments."""
        frame = lines([self.title, *self.standing.split(", ")], width)
        trials = sorted(self.running.items())
        if len(trials) > FEW:
            frame += [self.brief(slot, trial, width) for slot, trial in trials[:MANY]]
            frame += lines([f"and {len(trials) - MANY} more trials"] if len(trials) > MANY else [], width)
            trials = []
        for _, trial in trials:
            share = {"starting": 0.0, "training": trial.seconds() / trial.budget_s}.get(trial.phase, 1.0)
            done = min(width, int(width * share))
            bar = Text.assemble(("━" * done, "cyan"), ("━" * (width - done), "bright_black"))
            frame += [*lines([trial.what], width, "bold"), bar, *lines(self.facts(trial), width)]
        elapsed_s = time.monotonic() - self.began
        rate = f"{3600 * self.ended / elapsed_s:.1f} trials an hour" if self.ended else ""
        pace = lines([rate, f"${self.usd:.2f} spent", self.limits], width, "dim")
        asked = f"{self.researcher} {time.monotonic() - self.since:.0f} s" if self.researcher else ""
        return [*frame, *lines([asked], width, "dim"), *pace, *recent(self.history, width)]


def can_draw() -> bool:
    """Whether stdout is a terminal that moves its cursor and has the characters of a bar."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return sys.stdout.isatty() and not dumb and "utf" in (sys.stdout.encoding or "utf-8").lower()


def curve(log: str) -> Curve:
    """The losses in progress lines, which name the spent share of the budget."""
    return {int(percent): float(loss) for percent, loss in PROGRESS.findall(log)}


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


def lines(facts: Sequence[str], width: int, style: str = "") -> list[Text]:
    """The facts on as few lines as they fit; a longer one has its own line and is cut."""
    packed: list[str] = []
    for fact in filter(None, facts):
        if packed and cell_len(packed[-1]) + 2 + cell_len(fact) <= width:
            packed[-1] += f", {fact}"
        else:
            packed.append(fact)
    return [Text(line, style, no_wrap=True, overflow="ellipsis") for line in packed]


def recent(history: Sequence[Experiment], width: int) -> Iterator[Text]:
    """The last experiments, newest first, a line each, with their cost in a wide window."""
    for experiment in reversed(history[-SHOWN:]):
        row, n_busy = experiment.own, sum(row.status is Status.BUSY for row in experiment.rows)
        n_counted = len(experiment.rows) - n_busy
        status = experiment.status + f" x{n_counted}" * (n_counted > 1) + f" busy x{n_busy}" * (n_busy > 0)
        value = "" if experiment.val_bpb is None else f"{experiment.val_bpb:.6f}"
        cost = f"{row.tokens_m:7.1f} M tokens {row.total_seconds:4.0f} s {row.memory_gb:5.1f} GB  "
        what = f"{one_line(row.description, 200)} ({one_line(row.source, 20)})"
        line = f"{experiment.number:5} {value:8} {status:10} {cost if width >= WIDE else ''}{what}"
        yield Text(line, STYLES.get(experiment.status, ""), no_wrap=True, overflow="ellipsis")


class Phase:
    """What is being prepared, for how long, and how much of it is done."""

    def __init__(self, plain: bool):
        self.plain, self.name, self.done, self.began = plain, "starting", "", time.monotonic()

    def report(self, name: str, done: int, total: int) -> None:
        self.done = f" {done / total:.0%}" if total else ""
        if name != self.name:
            self.name, self.began = name, time.monotonic()
            if self.plain:
                print(self.text(), flush=True)

    def text(self) -> str:
        return f"{self.name}{self.done}, {time.monotonic() - self.began:.0f} s"

    def repeat(self, ended: threading.Event) -> None:
        while not ended.wait(SILENCE_S):
            print(self.text(), flush=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A report(phase, done, total) that shows on stdout: redrawn, or a line every 3 s."""
    phase, ended = Phase(not can_draw()), threading.Event()
    if phase.plain:
        threading.Thread(target=phase.repeat, args=[ended], daemon=True).start()
    try:
        with nullcontext() if phase.plain else Live(get_renderable=lambda: Text(phase.text()), transient=True):
            yield phase.report
    finally:
        ended.set()
