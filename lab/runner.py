"""One trial on this machine: a referee of its own, its result as a value, what is kept of it.

Promises: `run` returns within the referee's deadlines plus a little, whatever the trial does; when
it returns, no process of the trial is left; a crash is a Trial whose val_bpb is None. It decides
nothing about keeping, and never reads a number from what a trial printed.
"""

import argparse
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import baseline, sandbox
from lab.commandline import positive, within
from lab.corpus import Data, default_data, held_out, open_data
from lab.display import progress_bar
from lab.ledger import Ending, SetupError, Trial, one_line
from lab.referee import DEFAULT_LIMITS, MODEL, START_SLACK_S, WITNESS_FACTOR, TrialLimits
from lab.wire import KEEP_FREED_MEMORY
from prepare import DEFAULT_BUDGET_S, default_device

ROOT = Path(__file__).resolve().parent.parent
REFEREES: set[int] = set()  # the living ones of this process: the sweep after one trial spares the others
MAX_SEED = 2**32 - 1  # numpy's
MAX_LINE = 1000  # characters of what a train.py by hand prints
BY_HAND = "Train AUTORESEARCH_BUDGET seconds on AUTORESEARCH_DATA with AUTORESEARCH_SEED, print a summary."
BACKSTOP_S = 60.0  # beside the referee's own limits; only a dead or hung referee meets it


@dataclass(frozen=True)
class Slot:
    """A place for one trial at a time: this machine, or a part of it."""

    number: int = 0
    name: str = ""                # for row and screen; "" where it is the only one
    cores: tuple[int, ...] = ()   # that its trials are bound to; () for all
    card: str = ""                # the UUID of its GPU; "" for the one that CUDA chooses
    hidden: tuple[str, ...] = ()  # device files of the other cards
    host: str = ""                # the node of a cluster; "" for this machine

    def folder(self, runs: Path) -> Path:
        """Where its trials work, below the session's folder."""
        return runs / f"slot-{self.number}" if self.number else runs


class RefereeFailed(Exception):
    """The referee itself broke: our bug or the machine's, with its stderr as the message."""


def run(code: str, *, data: Data, seed: int, budget_s: float, folder: Path, split: str = "val",
        witness_below: float = math.inf, is_baseline: bool = False, last_try: bool = False,
        on_event: Callable[[str, object], None] = lambda kind, value: None,
        interrupted: Callable[[], bool] = lambda: False, limits: TrialLimits = DEFAULT_LIMITS,
        slot: Slot = Slot()) -> Trial | None:  # noqa: B008  frozen
    """Run one train.py under the budget; None when `interrupted` became true before it ended.

    folder: the session's, runs/TAG; it holds what the baseline measured. A val_bpb below
    `witness_below` gets its witness in the same call. A trial that did not have its machine ends
    BUSY, unless it is the last try of an experiment.
    """
    work = slot.folder(folder)
    work.mkdir(parents=True, exist_ok=True)
    (work / MODEL).unlink(missing_ok=True)  # of a trial before that was not kept
    device = default_device()
    cards = sandbox.existing(sandbox.GPUS) if device == "cpu" else slot.hidden
    spec = {
        "code": code, "data": str(data.folder), "split": split, "seed": seed, "budget": budget_s,
        "folder": str(folder), "work": str(work), "device": device,
        "cores": len(slot.cores) or os.cpu_count(), "is_shared": bool(slot.name), "parent": os.getpid(),
        "hidden": [*map(str, held_out(data.source)), *cards],
        "witness_below": witness_below, "is_baseline": is_baseline, "last_try": last_try,
        "limits": asdict(limits)}
    sandbox.adopt_orphans()  # should the referee be killed, its trial comes to us
    errors = work / "referee.log"
    card = {"CUDA_VISIBLE_DEVICES": slot.card} if slot.card else {}
    with open(errors, "wb") as stderr, sandbox.CHILDREN:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.referee"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
            env=os.environ | sandbox.THREADS | KEEP_FREED_MEMORY | {"PYTHONIOENCODING": "utf-8"} | card)
        REFEREES.add(process.pid)
    deadline = time.monotonic() + longest_s(limits, budget_s)
    try:
        process.stdin.write((json.dumps(spec) + "\n").encode())
        process.stdin.close()
        result = follow(process, deadline, on_event, interrupted)
    finally:
        end(process)
    if result is not None:
        return Trial(**result | {"ending": Ending(result["ending"])})
    if interrupted():
        return None
    said = one_line(errors.read_text(errors="replace")[-2000:], 2000)
    raise RefereeFailed(f"the referee ended with code {process.returncode}: {said}")


def longest_s(limits: TrialLimits, budget_s: float) -> float:
    """An upper bound for cache filling, trial, witness and profile; the last two may take longer to start."""
    patience_s = (2 + 2 * WITNESS_FACTOR) * sum(asdict(limits).values())
    return patience_s + 3 * budget_s + START_SLACK_S + BACKSTOP_S


def follow(process: subprocess.Popen, deadline: float, on_event: Callable,
           interrupted: Callable) -> dict | None:
    """Pass the referee's events on until its result; None when it ends without one, or must."""
    pending = b""
    with selectors.PollSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and not interrupted():
            if not selector.select(0.1):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return None
            *lines, pending = (pending + data).split(b"\n")
            for message in map(json.loads, lines):
                if message["event"] == "result":
                    return message["value"]
                on_event(message["event"], message["value"])
    return None


def end(process: subprocess.Popen) -> None:
    """End the referee, which ends its trial; then whatever it could not reach."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    REFEREES.discard(process.pid)
    if process.returncode not in (0, 143, -signal.SIGTERM):  # killed at work, which SIGTERM never does
        try:
            with sandbox.CHILDREN:
                sandbox.sweep(but=REFEREES)
        except OSError as error:  # a driver or a disk holds some: whether the machine still works is asked next
            raise RefereeFailed(str(error)) from None


def by_hand(path: Path) -> int:
    """`python train.py`: a trial without a witness; prints its lines and a summary."""
    argparse.ArgumentParser(path.name, description=BY_HAND).parse_args()
    try:
        budget_s = setting("AUTORESEARCH_BUDGET", positive, DEFAULT_BUDGET_S)
        seed = setting("AUTORESEARCH_SEED", within(0, MAX_SEED, f"a whole number up to {MAX_SEED}", int), 0)
        sandbox.level()
        with progress_bar() as report:
            data = open_data(os.environ.get("AUTORESEARCH_DATA") or default_data(), report)
        trial = run(
            path.read_text(encoding="utf-8"), data=data, folder=ROOT / "runs" / "by-hand", seed=seed,
            budget_s=budget_s, witness_below=-math.inf, is_baseline=True, last_try=True, on_event=print_line)
    except (SetupError, RefereeFailed) as error:
        print(f"{path.name}: {error}", file=sys.stderr)
        return 2
    for name, value in asdict(trial).items():
        if name not in ("log", "late_log", "phases", "profile", "versions"):
            print(f"{name}: {one_line(str(value))}")
    return 1 if trial.val_bpb is None else 0


def setting(name: str, read: Callable[[str], float], default: float) -> float:
    """A variable's number. Raises SetupError."""
    try:
        return read(os.environ.get(name) or str(default))
    except argparse.ArgumentTypeError as error:
        raise SetupError(f"{name}: {error}") from None


def print_line(kind: str, value: object) -> None:
    for line in value.splitlines() if kind == "line" else ():
        print(one_line(line, MAX_LINE), flush=True)  # without what a terminal would obey


def baseline_known(runs: Path) -> bool:
    """Whether what the session's baseline measured is there; if not, it is measured once more."""
    return baseline.read(runs) is not None


def keep_model(runs: Path, slot: Slot) -> None:
    """Make the file of the trial that has just been kept the session's model.

    A kill between its row and this leaves the file of the keep before.
    """
    learnt = slot.folder(runs) / MODEL
    if learnt.exists() and not slot.host:
        os.replace(learnt, runs / "model.safetensors")


def save_log(trial: Trial, runs: Path, number: int) -> None:
    """What a trial of an experiment printed beside what was measured, for the morning."""
    path = runs / f"{number:04d}-{trial.seed}.log"
    path.write_text(trial.log, encoding="utf-8", errors="replace")
    if trial.late_log:
        path.with_suffix(".late.log").write_text(trial.late_log, encoding="utf-8", errors="replace")
    facts = {name: value for name, value in asdict(trial).items() if name not in ("log", "late_log")}
    path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")


def read_log(runs: Path, number: int, seed: int) -> str:
    """What a trial printed; "" when its log is gone."""
    path = runs / f"{number:04d}-{seed}.log"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
