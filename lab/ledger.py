"""The rows of results.tsv, what they add up to, and the types that outlive a night.

Promises: a row is appended whole and fsynced, or not at all; what is written reads back as the same row.
It decides nothing: verdicts come from agent.py, numbers from the referee.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import StrEnum
from math import nan
from pathlib import Path


class SetupError(Exception):
    """The user must act; the message is one line that says what is wrong and what to do."""


COMBINED = "combine"         # source of a train.py that joins two changes which were kept side by side
LEFT_OUT = "leave-one-out"   # and of the incumbent without one of its changes
NO_MODEL = ("baseline", "tuner", COMBINED, LEFT_OUT)  # sources; every other one is a model's name


class Status(StrEnum):
    """What a row of results.tsv is."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    REPEAT = "repeat"  # another trial of a commit already tried
    BUSY = "busy"      # a trial that did not have its machine: it counts nowhere and runs again


class Ending(StrEnum):
    """How a trial ended. Decisions read this, never the text of a reason."""

    SCORED = "scored"
    CRASHED = "crashed"            # its own code fell over, or took too long
    MEMORY = "memory"              # out of memory, its own or while it was scored
    FOUL = "foul"                  # it broke the contract of a trial
    UNREPEATABLE = "unrepeatable"  # the witness could not run its train.py, or differed everywhere
    BUSY = "busy"                  # it did not have its machine
    MACHINE = "machine"            # the referee or the device failed, not the trial


@dataclass(frozen=True)
class Proposal:
    """One idea, already a complete and checked train.py."""

    description: str     # one line, the proposer's words
    code: str            # the whole train.py that results
    source: str          # the model's name, or one of NO_MODEL
    reasoning: str = ""
    usd: float = 0.0     # list price of every call that led here, repairs included
    note: str = ""       # facts about how it came to be ("repaired once", ...)


@dataclass(frozen=True)
class Trial:
    """What the referee measured in one run of one train.py with one seed."""

    val_bpb: float | None       # bits per byte on `split`; None where there is no number
    reason: str                 # why it crashed, one line; "" when it did not
    seed: int
    split: str                  # "val" or "test"
    budget: float               # seconds of training
    device: str
    data: str                   # first eight characters of the data hash
    sandbox: str                # what the kernel enforced, "none" where it could not
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    tokens_m: float = 0.0       # millions of training tokens handed out
    n_batches: int = 0          # in which they were handed out
    params_m: float = 0.0       # millions of parameters, as the model object counts them
    memory_gb: float = 0.0      # peak: GPU memory where there is one, else resident memory
    ending: Ending = Ending.SCORED
    witnessed: bool = False     # a witness gave the same losses
    note: str = ""              # measured peculiarities ("pins its own seed", ...)
    log: str = ""               # bounded head and tail of what it printed: data, never parsed for a number
    late_log: str = ""          # what it printed once it knew validation rows: never for the researcher
    phases: dict[str, float] = field(default_factory=dict)  # seconds by part: start, train, score, witness
    profile: str = ""           # where its time went: measured facts, and what a few steps more said; data
    versions: dict[str, str] = field(default_factory=dict)  # of Python, torch and the GPU's driver
    slot: str = ""              # the slot that it ran in; "" if there was only one

    @property
    def crashed(self) -> bool:
        return self.val_bpb is None and self.ending is not Ending.BUSY


ON = "on "  # begins the last part of a note, where there are several slots
STEERED = "program.md changed"  # part of the note of the first idea that read a changed program.md


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results.tsv; the fields are the columns, in order."""

    commit: str
    val_bpb: float | None
    memory_gb: float = 0.0
    status: Status = Status.DISCARD
    description: str = ""
    experiment: int = 0
    parent: str = ""  # commit of the train.py that it changes
    seed: int = 0
    split: str = "val"
    budget: float = 0.0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    tokens_m: float = 0.0
    params_m: float = 0.0
    source: str = ""
    usd: float = 0.0
    device: str = ""
    data: str = ""
    sandbox: str = ""
    note: str = ""
    when: str = ""    # ISO 8601, UTC; the order of rows is the file's

    @property
    def slot(self) -> str:
        """The slot that it ran in, from the end of its note; "" if there was only one."""
        *_, last = self.note.split("; ")
        return last.removeprefix(ON) if last.startswith(ON) else ""

    @property
    def is_steered(self) -> bool:
        return STEERED in self.note.split("; ")


@dataclass(frozen=True, slots=True)
class Experiment:
    """All rows of one idea, in the order of the file."""

    number: int
    rows: tuple[Row, ...]
    kept_at: int = -1   # place in the file of its last `keep` row; a repeat may be one
    judged_at: int = 0  # and of its own row

    @property
    def own(self) -> Row:
        """The row with its verdict: the first one that had its machine."""
        return next((row for row in self.rows if row.status != Status.BUSY), self.rows[0])

    @property
    def commit(self) -> str:
        return self.own.commit

    @property
    def status(self) -> Status:
        return Status.KEEP if self.kept_at >= 0 else self.own.status

    def values(self, split: str, budget_s: float | None = None) -> list[float]:
        """val_bpb of its trials on one split, by default under its own budget; busy trials do not count.

        No witness has confirmed a discard's own number, so it counts only as long as there is no other.
        """
        budget_s = self.own.budget if budget_s is None else budget_s
        rows = [row for row in self.rows if row.status != Status.BUSY and row.val_bpb is not None]
        rows = [row for row in rows if (row.split, row.budget) == (split, budget_s)]
        witnessed = [row for row in rows if row.status is not Status.DISCARD or split == "test"]
        return [row.val_bpb for row in witnessed or rows]

    @property
    def val_bpb(self) -> float | None:
        """The estimate: the mean of its trials on the validation split; None after a crash."""
        values = self.values("val")
        return sum(values) / len(values) if values and self.own.val_bpb is not None else None


def experiments(rows: Sequence[Row]) -> list[Experiment]:
    """Group rows by experiment number, in order of first appearance."""
    grouped: dict[int, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.experiment, []).append(row)
    kept_at = {row.experiment: place for place, row in enumerate(rows) if row.status is Status.KEEP}
    judged_at = {row.experiment: place for place, row in reversed([*enumerate(rows)]) if row.status != Status.BUSY}
    return [Experiment(number, tuple(members), kept_at.get(number, -1), judged_at.get(number, -1))
            for number, members in grouped.items()]


def incumbent(history: Sequence[Experiment]) -> Experiment | None:
    """The experiment of the last `keep` row: the branch's head."""
    last = max(history, key=lambda e: e.kept_at, default=None)
    return last if last and last.status is Status.KEEP else None


def misses(history: Sequence[Experiment]) -> int:
    """Experiments that were judged since the last keep; 0 before the first keep."""
    last = max((e.kept_at for e in history), default=-1)
    return sum(e.judged_at > last for e in history) if last >= 0 else 0


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """Standard deviation within groups of measurements; None where no group has two values."""
    squares, freedom = 0.0, 0
    for values in groups:
        squares += sum((value - sum(values) / len(values)) ** 2 for value in values)
        freedom += max(0, len(values) - 1)
    return (squares / freedom) ** 0.5 if freedom else None


def sigma(history: Sequence[Experiment]) -> float | None:
    """Noise of val_bpb between seeds; None without any repeat."""
    return pooled_deviation(repeated(history))


def repeated(history: Sequence[Experiment]) -> list[list[float]]:
    """The values of each train.py that has several, on the test split where none has them on val.

    A train.py that pins its own seed repeats one value. It counts once: it says nothing of the noise.
    """
    for split in ("val", "test"):
        groups = [list(set(e.values(split))) for e in history if len(e.rows) > 1]
        if several := [values for values in groups if len(values) > 1]:
            return several
    return []


def pinned(experiment: Experiment, trial: Trial) -> str:
    """A note when another seed gave the same value to six decimals: a pinned seed hides the noise."""
    value = nan if trial.val_bpb is None else round(trial.val_bpb, 6)
    for row in experiment.rows:
        if (row.split, row.val_bpb) == (trial.split, value) and row.seed != trial.seed:
            return f"pins its own seed: seed {row.seed} gave the same val_bpb"
    return ""


COLUMNS = tuple(f.name for f in fields(Row))
HEADER = "\t".join(COLUMNS) + "\n"
SPARE = ".{}.new"  # where a file's next contents are written before they replace it
_FORMATS = {
    "val_bpb": ".6f", "memory_gb": ".2f", "budget": "g",
    "train_seconds": ".1f", "total_seconds": ".1f",
    "tokens_m": ".3f", "params_m": ".3f", "usd": ".4f",
}
_FORMULA = re.compile(r"'*[=+\-@]")  # a spreadsheet would compute a cell that begins so
_READERS = {
    str: lambda cell: cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell,
    int: lambda cell: int(cell or 0),
    float: lambda cell: float(cell or 0),
    float | None: lambda cell: float(cell) if cell else None,
    Status: Status,
}
_READ = {f.name: _READERS[f.type] for f in fields(Row)}


def utc_now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(text: str, limit: int = 300) -> str:
    """Text fit for a cell or a terminal line: no control characters, no runs of blanks, bounded."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def as_part(text: str) -> str:
    """Text of a trial as one part of a note, which cannot pass for another part."""
    return one_line(text).replace("; ", ", ").removeprefix(ON)


def format_row(row: Row) -> str:
    cells = []
    for name in COLUMNS:
        value = getattr(row, name)
        if isinstance(value, str):
            value = one_line(value)
            cells.append(f"'{value}" if _FORMULA.match(value) else value)
        else:
            cells.append("" if value is None else format(value, _FORMATS.get(name, "")))
    return "\t".join(cells) + "\n"


def parse_row(line: str, columns: Sequence[str] = COLUMNS) -> Row:
    """Raises ValueError for a line that is not a whole row."""
    cells = line.rstrip("\n").split("\t")
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells, expected {len(columns)}")
    return Row(**{name: _READ[name](cell) for name, cell in zip(columns, cells, strict=True)})


def read(path: Path) -> list[Row]:
    """The rows of a file, none where it does not exist; see parse()."""
    return parse(path.read_bytes(), path.name) if path.exists() else []


def parse(data: bytes, name: str = "results.tsv") -> list[Row]:
    """Every whole row; a torn last line is skipped. Raises ValueError that names a damaged line."""
    text = data.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    header, *lines = text.split("\n")[:-1] or [""]
    columns = header.split("\t") if header else []
    if unknown := [column for column in columns if column not in _READ]:
        raise ValueError(f"{name} line 1: unknown columns {', '.join(map(repr, unknown[:3]))}")
    rows = []
    for number, line in enumerate(lines if columns else []):
        try:
            row = parse_row(line, columns)
        except ValueError as error:
            raise ValueError(f"{name} line {number + 2}: {error}") from None
        if "experiment" not in columns:  # the original's file: a row is an experiment, a crash has 0
            value = None if row.status == Status.CRASH else row.val_bpb
            row = replace(row, experiment=number, val_bpb=value)
        rows.append(row)
    return rows


def append(path: Path, row: Row) -> None:
    """After this returns, the row survives a power cut. Raises OSError with no part of it written."""
    with open(path, "ab", buffering=0) as file:
        before, data = file.tell(), format_row(row).encode()
        try:
            while data:
                data = data[file.write(data):]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def append_line(path: Path, line: str) -> None:
    """Append to a file of JSON lines, on disk when this returns. A torn last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)  # the user may have cleaned up
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        is_torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * is_torn + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_durably(path: Path, data: bytes | Iterable[memoryview]) -> None:
    """Replace a file so that a power cut leaves the old or the new one whole; it keeps its mode."""
    new = path.with_name(SPARE.format(path.name))
    with open(new, "wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.chmod(new, path.stat().st_mode & 0o7777)
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
