"""results.tsv, the session's memory: read, repair, append; and the types that outlive a night.

Promises: a row is appended whole and fsynced, rows are never rewritten, a torn tail is cut off before the next append.
Does not decide anything: verdicts come from agent.py, numbers from the referee.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from functools import lru_cache
from pathlib import Path


class SetupError(Exception):
    """The user must act; the message is one line that says what is wrong and what to do."""


class Status(str, Enum):
    """What a row of results.tsv is."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    REPEAT = "repeat"         # another trial of a commit already tried
    BUSY = "busy"             # a trial that did not have its machine: it counts nowhere and runs again

    __str__ = str.__str__


class Ending(str, Enum):
    """How a trial ended. Decisions read this, never the text of a reason."""

    SCORED = "scored"
    CRASHED = "crashed"       # its own code fell over
    MEMORY = "memory"         # out of memory, its own or while it was scored
    FOUL = "foul"             # it broke the contract of a trial
    UNREPEATABLE = "unrepeatable"  # the witness could not run its train.py, or differed everywhere
    BUSY = "busy"             # it did not have its machine
    MACHINE = "machine"       # the referee or the device failed, not the trial

    __str__ = str.__str__


@dataclass(frozen=True)
class Proposal:
    """One idea, already a complete and checked train.py."""

    description: str          # one line, the proposer's words
    code: str                 # the whole train.py that results
    source: str               # the model's name, "tuner" or "baseline"
    reasoning: str = ""
    usd: float = 0.0          # list price of every call that led here, repairs included
    note: str = ""            # facts about how it came to be ("repaired once", ...)


@dataclass(frozen=True)
class Trial:
    """What the referee measured in one run of one train.py with one seed. A crash is a value, never an exception."""

    val_bpb: float | None     # bits per byte on `split`; None for a crash
    reason: str               # why it crashed, one line; "" when it did not
    seed: int
    split: str                # "val" or "test"
    budget: float             # seconds of training
    device: str
    data: str                 # first eight characters of the data hash
    sandbox: str              # what the kernel enforced, "none" where it could not
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    tokens_m: float = 0.0     # millions of training tokens handed out
    params_m: float = 0.0     # millions of parameters, as the model object counts them
    memory_gb: float = 0.0    # peak: GPU memory where there is one, else resident memory
    ending: Ending = Ending.SCORED
    witnessed: bool = False   # a second process that was told nothing said the same
    note: str = ""            # measured peculiarities ("pins its own seed", ...)
    log: str = ""             # bounded head and tail of what it printed: data, never parsed for a number
    phases: dict[str, float] = field(default_factory=dict)  # seconds by part: start, train, score, stop

    @property
    def crashed(self) -> bool:
        return self.val_bpb is None and self.ending is not Ending.BUSY


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results.tsv; the fields are the columns, in order."""

    commit: str
    val_bpb: float | None
    memory_gb: float = 0.0
    status: Status = Status.DISCARD
    description: str = ""
    experiment: int = 0
    parent: str = ""          # commit of the incumbent it was judged against
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
    when: str = ""            # ISO 8601, UTC


COLUMNS = tuple(f.name for f in fields(Row))
HEADER = "\t".join(COLUMNS) + "\n"
_FORMATS = {"val_bpb": ".6f", "memory_gb": ".2f", "budget": "g", "train_seconds": ".1f", "total_seconds": ".1f",
            "tokens_m": ".3f", "params_m": ".3f", "usd": ".4f"}
_number = lru_cache(1024)(lambda cell: float(cell or 0))  # often equal: twenty thousand rows stay in memory
_READ = {f.name: str if f.type is str else (lambda cell: int(cell or 0)) if f.type is int else _number
         for f in fields(Row)}
_READ["val_bpb"] = lambda cell: float(cell) if cell else None
_READ["status"] = Status
_READ |= dict.fromkeys(("parent", "split", "source", "device", "data", "sandbox"), sys.intern)


@dataclass(frozen=True, slots=True)
class Experiment:
    """All rows of one idea: its own row first, then its repeats."""

    number: int
    rows: tuple[Row, ...]

    @property
    def own(self) -> Row:
        return self.rows[0]

    @property
    def commit(self) -> str:
        return self.own.commit

    @property
    def status(self) -> str:
        return self.own.status

    @property
    def val_bpb(self) -> float | None:
        """The estimate: mean over its trials on the validation split; None after a crash."""
        values = [row.val_bpb for row in self.rows if row.split == "val" and row.val_bpb is not None]
        return sum(values) / len(values) if values and self.own.val_bpb is not None else None


def experiments(rows: Iterable[Row]) -> list[Experiment]:
    """Group rows by experiment number, in order of first appearance."""
    grouped: dict[int, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.experiment, []).append(row)
    return [Experiment(number, tuple(members)) for number, members in grouped.items()]


def incumbent(history: Sequence[Experiment]) -> Experiment | None:
    """The last experiment that was kept: the branch's head."""
    return next((e for e in reversed(history) if e.status == "keep"), None)


def misses(history: Sequence[Experiment]) -> int:
    """Experiments since the last keep."""
    return next((n for n, experiment in enumerate(reversed(history)) if experiment.status == "keep"), 0)


def sigma(history: Iterable[Experiment]) -> float | None:
    """Noise of val_bpb between seeds: pooled standard deviation of trials of equal commits; None before a repeat.

    A train.py that pins its own seed repeats one value, which counts once: it says nothing of the noise.
    """
    squares, freedom = 0.0, 0
    for experiment in history:
        if len(experiment.rows) == 1:  # nearly all: the loop asks after each of twenty thousand
            continue
        values = {row.val_bpb for row in experiment.rows if row.split == "val" and row.val_bpb is not None}
        squares += sum((value - sum(values) / len(values)) ** 2 for value in values)
        freedom += max(0, len(values) - 1)
    return (squares / freedom) ** 0.5 if freedom else None


def pinned(experiment: Experiment, trial: Trial) -> str:
    """A note when another seed changed nothing, to the sixth decimal: whoever pins his seed hides the noise."""
    same = [row.seed for row in experiment.rows if row.split == trial.split and row.seed != trial.seed
            and None not in (row.val_bpb, trial.val_bpb) and f"{row.val_bpb:.6f}" == f"{trial.val_bpb:.6f}"]
    return f"pins its own seed: seed {same[0]} gave the same val_bpb" if same else ""


def utc_now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(text: str, limit: int = 300) -> str:
    """Text made fit for a cell or a terminal line: no control characters, no runs of blanks, bounded."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_row(row: Row) -> str:
    cells = []
    for name in COLUMNS:
        value = getattr(row, name)
        if value is None:
            cells.append("")
        elif isinstance(value, str):
            cells.append(one_line(value))
        else:
            cells.append(format(value, _FORMATS.get(name, "")))
    return "\t".join(cells) + "\n"


def parse_row(line: str, columns: Sequence[str] = COLUMNS) -> Row:
    """Raises ValueError for a line that is not a whole row."""
    cells = line.rstrip("\n").split("\t")
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells, expected {len(columns)}")
    return Row(**{name: _READ[name](cell) for name, cell in zip(columns, cells, strict=True)})


def read(path: Path) -> list[Row]:
    """Every whole row. Raises ValueError naming the line for a damaged one (a torn last line is skipped)."""
    return parse(path.read_bytes(), path.name) if path.exists() else []


def parse(data: bytes, name: str = "results.tsv") -> list[Row]:
    """The rows of a file's bytes; see read()."""
    header, *lines = data.decode("utf-8", "replace").split("\n")[:-1] or [""]
    if not header:
        return []
    columns = header.split("\t")
    unknown = [column for column in columns if column not in _READ]
    if unknown:
        raise ValueError(f"{name} line 1: unknown columns {', '.join(map(repr, unknown[:3]))}")
    rows = []
    for number, line in enumerate(lines):
        try:
            row = parse_row(line, columns)
        except ValueError as error:
            raise ValueError(f"{name} line {number + 2}: {error}") from None
        if "experiment" not in columns:  # the field's five-column files: one row an experiment, a crash logged as 0
            row = replace(row, experiment=number, val_bpb=None if row.status == "crash" else row.val_bpb)
        rows.append(row)
    return rows


def repair(path: Path) -> str:
    """Cut a torn last line (a write that lost its power) and restore a missing header; say what was done, or ""."""
    data = path.read_bytes() if path.exists() else b""
    if not data.startswith(b"commit\t") and HEADER.encode().startswith(data):
        with open(path, "wb") as f:
            f.write(HEADER.encode())
            os.fsync(f.fileno())
        return "wrote its header"
    whole = data.rfind(b"\n") + 1
    if whole == len(data):
        return ""
    with open(path, "r+b") as f:
        f.truncate(whole)
        os.fsync(f.fileno())
    return f"cut a torn last line of {len(data) - whole} bytes"


def append(path: Path, row: Row) -> None:
    """The commit point: after this returns, the row survives a power cut. Raises OSError with no part of it written."""
    with open(path, "ab", buffering=0) as f:
        before, data = f.tell(), format_row(row).encode()
        try:
            while data:
                data = data[f.write(data):]
            os.fsync(f.fileno())
        except OSError:
            f.truncate(before)
            raise


def spare(path: Path) -> Path:
    """Where a file's next contents are written before they replace it."""
    return path.with_name(f".{path.name}.new")


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that a power cut leaves the old or the new one whole; it keeps its mode."""
    new = spare(path)
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.chmod(new, path.stat().st_mode & 0o7777)
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
