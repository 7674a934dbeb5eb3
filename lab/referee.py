"""The trusted process of a trial: feeds tokens, keeps the clock, scores, starts the witness.

    python -m lab.referee   runs the trial that a JSON line on stdin describes; answers with such lines

Promises: a trial gets training tokens while its budget lasts, and the first one starts the clock. It
gets validation inputs once its file of weights is complete, targets and byte counts never. The metric is
computed here, from logits, and nothing a trial prints is parsed. When this process ends, so has
every process of the trial. It does not know what an experiment is.

A file may fill a quarter of the free memory. It is complete before the trial sees a validation row,
so a larger one wins nothing, and memory is the only bound: the referee's copy, the bytes that the
witness reads, its tensors and its module hold the file four times. While the trial starts, the referee
allocates as many pages as the baseline's file has. Further pages count only once the trial has written
them, in its own time.
"""

import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import baseline, exam, machine, profiler, sandbox
from lab.baseline import Baseline
from lab.child import MOST_OF_DISK, Child, ContractBroken, child_of, disk_left, remove, stood_still, tell
from lab.corpus import Data
from lab.ledger import Ending
from lab.scoring import Scorer, bits_per_byte
from lab.wire import FILE, PARAMS, PULL, ROWS, mapped, seal, sealable_memory, sealed_copy, take_pages

START_FACTOR, START_SLACK_S = 1.5, 10.0  # free start-up: the baseline's seconds times and plus this
WITNESS_FACTOR = 3.0                     # how much longer than its trial a witness may start
LATE_SHARE, LATE_MOST = 0.003, 0.02  # of the budget: least and most that a file may be late; between, a median step
LATE_SLACK_S = 0.25                  # added for scheduling, divided by the share of the machine ...
LEAST_OWN = 0.1                      # ... that the trial had, which counts as at least this
COPY_BYTES_A_S = 1e9                 # at which a file is written into untouched memory
FILE_PART = 4                        # a file may fill a fourth of the free memory
MAX_PULL_ROWS = 1 << 16
CARD_EVERY_S = 1.0                   # how often a GPU is looked at
MODEL = "candidate.safetensors"      # what a witnessed trial learnt, until the next one starts


@dataclass(frozen=True)
class TrialLimits:
    """Seconds of patience; each ends the trial, and the row's reason says which it was."""

    start_s: float = 300.0     # imports, model, compile and warm-up, until the first batch
    first_s: float = 30.0      # each of the first logits, whatever the medians say
    score_s: float = 180.0     # to the last logits, beside the budget: slow models train slowly
    stop_s: float = 10.0       # from the last logits to the end of the process


DEFAULT_LIMITS = TrialLimits()


class Training:
    """One trial until its file is whole, and what was measured of it so far."""

    def __init__(self, spec: dict, free_start_s: float):
        """free_start_s: beyond so much start-up the clock runs."""
        self.spec, self.budget_s, self.free_start_s = spec, spec["budget"], free_start_s
        self.started_at = time.monotonic()
        self.clock_at: float | None = None    # when the budget began
        self.file_at: float | None = None     # when the file was whole
        self.file_bytes = 0
        self.tokens_m = self.params_m = 0.0
        self.rows_an_ask = 1
        self.n_rows = 0
        self.lost = 0.0                       # share of the machine it wanted and did not get
        self.note = ""
        self.pulled_at: list[float] = []
        self.card_lost: list[bool] = []       # by the second: others used it, or heat slowed it
        self.at_clock: machine.Reading | None = None

    def start_s(self) -> float:
        return (self.clock_at or self.file_at or time.monotonic()) - self.started_at

    def feed(self, child: Child, data: Data, file_fd: int, limit_s: float) -> None:
        """Hand out tokens until the trial has written its file. Raises ContractBroken.

        limit_s: of the start-up. Tokens that were hoarded gain nothing: see `check_deadline`.
        """
        rows, next_row, deadline = data.split("train"), 0, self.started_at + limit_s
        why = f"asked for no data within {limit_s:.0f} s of its start"
        while self.file_at is None:
            operation, count = child.request(deadline, why)
            now = time.monotonic()
            if operation == PULL and count <= MAX_PULL_ROWS:
                self.count_pull(now)
                latest_s = LATE_MOST * self.budget_s + LATE_SLACK_S / LEAST_OWN
                deadline = self.clock_at + self.budget_s + latest_s
                why = "trained past its budget: its file was not whole in time"
                spent = min(1.0, (now - self.clock_at) / self.budget_s)
                numbers = range(next_row, next_row + (count if spent < 1 else 0))
                taken = np.take(rows, numbers, axis=0, mode="wrap")
                next_row = numbers.stop % len(rows)
                stood_still(now)
                child.answer(spent, taken, deadline, why)
                self.n_rows += len(taken)
                self.tokens_m += len(taken) * data.max_seq_len / 1e6
            elif operation == PARAMS and not self.params_m:
                self.params_m = count / 1e3
            elif operation == ROWS and 0 < count <= MAX_PULL_ROWS:
                self.rows_an_ask = count
            elif operation == FILE:
                self.take_file(file_fd, count)
            else:
                raise ContractBroken(f"protocol: request {operation!r} {count} while training")
        self.lost = machine.lost_share(self.at_clock, machine.read(self.spec["parent"]), self.spec["cores"])
        if self.card_lost:
            self.lost = sum(self.card_lost) / len(self.card_lost)
        self.check_deadline()

    def start_clock(self, now: float) -> None:
        """The first pull starts the budget, or the end of the free start-up does."""
        took_s = now - self.started_at
        over_s = took_s - self.free_start_s
        if over_s > 0:
            self.note = f"start-up took {took_s:.0f} s: {over_s:.0f} s of it counted"
        self.clock_at = now - max(0.0, over_s)

    def count_pull(self, now: float) -> None:
        if self.clock_at is None:
            self.start_clock(now)
            if now - self.clock_at > self.budget_s:
                raise ContractBroken(f"{self.note}, and the budget is over", Ending.CRASHED)
            self.at_clock = machine.read(self.spec["parent"])
            tell("clock", self.budget_s)
        self.pulled_at.append(now)
        is_due = now - self.clock_at >= CARD_EVERY_S * len(self.card_lost)
        if self.spec["device"] == "cuda" and is_due:
            self.card_lost.append(machine.card_is_shared(self.spec["parent"]))

    def row_s(self) -> float:
        """Seconds of training a row that it pulled."""
        return (self.file_at - self.clock_at) / self.n_rows if self.n_rows else math.inf

    def late_s(self) -> float:
        """How long after the budget the file may be whole: a step, its bytes, and a slack."""
        step_s = float(np.median(np.diff(self.pulled_at))) if len(self.pulled_at) > 1 else 0.0
        own_s = max(step_s, LATE_SHARE * self.budget_s) + self.file_bytes / COPY_BYTES_A_S
        slack_s = LATE_SLACK_S / max(LEAST_OWN, 1 - self.lost)
        return min(own_s, LATE_MOST * self.budget_s) + slack_s

    def check_deadline(self) -> None:
        """Raise ContractBroken where the file was late."""
        late_s = self.file_at - self.clock_at - self.budget_s
        if late_s > self.late_s():
            raise ContractBroken(f"trained past its budget: its file came {late_s:.2f} s after it, "
                                 f"{self.late_s():.2f} are allowed", Ending.CRASHED)

    def take_file(self, file_fd: int, n_bytes: int) -> None:
        """Seal the file; then it is whole, not before. Raises ContractBroken where it is open or too large."""
        try:
            seal(file_fd)
        except OSError:
            why = "kept its file open for writing after it had said that it was whole"
            raise ContractBroken(why) from None
        self.file_at, self.file_bytes = time.monotonic(), n_bytes
        if self.clock_at is None:  # it pulled no batch, but its start-up has an end
            self.start_clock(self.file_at)
        facts = os.fstat(file_fd)
        written = min(facts.st_size, facts.st_blocks * 512) if hasattr(os, "memfd_create") else facts.st_size
        if not 0 < n_bytes <= written:
            raise ContractBroken(f"its file of {n_bytes} bytes is larger than the {written} that it wrote")
        if n_bytes > min(MOST_OF_DISK[0], disk_left()[0] / 2):
            raise ContractBroken(f"its file of {n_bytes} bytes is too large to be kept on this disk")


@dataclass(frozen=True)
class Measured:
    """A trial that has ended and is swept."""

    training: Training
    child: Child
    losses: np.ndarray | None  # float32 (N, T), nats; None where the contract is broken
    dtype: str                 # of its logits


def run(spec: dict) -> dict:
    """One trial, its witness where the number would count; the fields of a ledger.Trial."""
    folder, work, data = Path(spec["folder"]), Path(spec["work"]), Data.load(Path(spec["data"]))
    share = spec["cores"] / os.cpu_count()  # of the machine, where several trials run at once
    is_long = spec["budget"] >= machine.LEAST_BUDGET_S
    probe_s = machine.probe() if is_long and not spec["is_shared"] else None
    known = baseline.read(folder)
    file_fd = sealable_memory("model", int(machine.memory()[0] * share) // FILE_PART)
    cache_note = baseline.fill_cache(spec, data) if spec["is_baseline"] else ""
    trial = measure(spec, data, known, file_fd)
    broken, words, val_bpb, witnessed = trial.child.broken, trial.child.words(), None, False
    notes = [cache_note, trial.training.note, trial.child.note]
    is_last = spec["last_try"]
    if is_long and not broken and (busy := machine.verdict(work, trial.training.lost, probe_s, is_last)):
        notes.append(busy if is_last else "")
        broken = None if is_last else ContractBroken(busy, Ending.BUSY)
    if not broken:
        rows = data.split(spec["split"])[: data.eval_rows[spec["split"]]]
        n_bytes = data.token_bytes()[rows[:, 1:].astype(np.int64)]
        val_bpb = bits_per_byte(trial.losses, n_bytes)
        if val_bpb < spec["witness_below"]:
            broken, words = ask_witness(spec, data, known, file_fd, trial, n_bytes > 0)
            witnessed = not broken
        if spec["split"] == "val" and known is None and not spec["is_baseline"]:
            notes.append("what the baseline measured is gone: the witness was asked at uniform places alone")
    if broken and broken.ending is Ending.BUSY and is_last:  # else it would run again for ever
        broken = ContractBroken(f"{broken}, as often before", Ending.CRASHED)
    fields = fields_of(spec, data, trial)
    lines = facts_of(fields, trial.training, data)
    if witnessed and is_long and spec["split"] == "val":
        lines += profile(spec, data, trial.training)
    remove(work / "trial")
    return fields | {
        "val_bpb": None if broken else val_bpb, "reason": str(broken or ""), "log": words[0], "late_log": words[1],
        "ending": broken.ending if broken else Ending.SCORED, "witnessed": witnessed, "profile": lines.strip(),
        "note": "; ".join(filter(None, notes))}


def measure(spec: dict, data: Data, known: Baseline | None, file_fd: int) -> Measured:
    """Train, write the file, score, end; whatever the trial does wrong is a value."""
    limits, losses, dtype = TrialLimits(**spec["limits"]), None, ""
    start_s = math.inf if spec["is_baseline"] else known.start_s if known else 0.0
    training = Training(spec, START_FACTOR * start_s + START_SLACK_S)
    with child_of(spec, data, file_fd) as child:
        tell("start", None)
        take_pages(file_fd, known.file_bytes if known else 0)
        scorer = Scorer(data, spec["split"], spec["device"])  # imports torch beside the trial
        training.feed(child, data, file_fd, limits.start_s)
        tell("score", None)
        losses, dtype = scorer.ask_all(
            child, np.arange(len(scorer.rows)), scorer.rows[:, :-1], training.rows_an_ask,
            training.row_s(), limits.first_s, LATE_MOST * spec["budget"], limits.score_s + spec["budget"])
    return Measured(training, child, losses, dtype)


def ask_witness(spec: dict, data: Data, known: Baseline | None, file_fd: int, trial: Measured,
                counts: np.ndarray) -> tuple[ContractBroken | None, tuple[str, str]]:
    """(what the witness proves against a trial that has ended, or None; what the two printed, see Child.words).

    counts: bool (N, T), false for targets that weigh nothing in the score. A good model is kept.
    """
    tell("witness", None)
    rng = np.random.default_rng()  # by the system's entropy: no trial could know it
    limits, training, losses, words = TrialLimits(**spec["limits"]), trial.training, trial.losses, trial.child.words()
    fits = known and spec["split"] == "val" and known.losses.shape == losses.shape
    cuts = exam.draw_cuts(losses, known.losses if fits else None, counts, rng)
    scorer = Scorer(data, spec["split"], spec["device"])
    inputs = exam.questions(scorer.rows, data.split("train"), cuts, data.vocab_size, rng)
    copy_fd = sealed_copy(file_fd, training.file_bytes)
    with child_of(spec, data, copy_fd, training.file_bytes) as child:
        wait_for_load(child, WITNESS_FACTOR * training.start_s() + START_SLACK_S)
        witnessed, dtype = scorer.ask_all(
            child, rng.permutation(len(losses)), inputs, training.rows_an_ask,
            training.row_s(), limits.first_s, LATE_MOST * spec["budget"], limits.score_s + spec["budget"])
    if broken := child.broken:
        why = f"its train.py does not run with a stream that is already over: {broken}"
        is_busy = broken.ending is Ending.BUSY
        words = tuple(map("\n[the witness printed:]\n".join, zip(words, child.words(), strict=True)))
        return broken if is_busy else ContractBroken(why, Ending.UNREPEATABLE), words
    ending, why = Ending.FOUL, "its logits have another type in a second process"
    if dtype == trial.dtype:
        ending, why = exam.verdict(losses, witnessed, cuts, spec["device"])
    if ending is not Ending.SCORED:
        return ContractBroken(why, ending), words
    with mapped(copy_fd, training.file_bytes) as content:
        (Path(spec["work"]) / MODEL).write_bytes(content)
    if spec["is_baseline"]:
        baseline.write(Path(spec["folder"]), Baseline(training.start_s(), training.file_bytes, losses))
    return None, words


def wait_for_load(child: Child, limit_s: float) -> None:
    """Wait until the witness has loaded the file. Raises ContractBroken."""
    deadline, operation = time.monotonic() + limit_s, PARAMS
    why = f"it did not load its weights within {limit_s:.0f} s"
    while operation != FILE:
        operation, count = child.request(deadline, why)
        if operation not in (PARAMS, ROWS, FILE):
            raise ContractBroken(f"protocol: request {operation!r} {count} of a witness")


def profile(spec: dict, data: Data, training: Training) -> str:
    """Where a step spends its time, by one more process of this train.py; what it prints is data."""
    tell("profile", None)
    limit_s = WITNESS_FACTOR * training.start_s() + START_SLACK_S
    deadline, why = time.monotonic() + limit_s, f"it took longer than {limit_s:.0f} s"
    with child_of(spec, data, sealable_memory("no file", 1), program=("-m", "lab.profiler")) as child:
        while True:  # until it ends
            operation, count = child.request(deadline, why)
            if operation == PULL and count <= MAX_PULL_ROWS:
                child.answer(0.5, np.take(data.split("train"), range(count), axis=0, mode="wrap"), deadline, why)
    _, found, text = child.log_text().rpartition(profiler.MARK)
    return text[:profiler.MAX_CHARS] if found else f"no profile: {child.broken}"


def fields_of(spec: dict, data: Data, trial: Measured) -> dict:
    """The fields of a ledger.Trial that were measured."""
    import torch

    training, ended_at, now = trial.training, trial.child.ended_at, time.monotonic()
    clock_at = training.clock_at or training.file_at or ended_at
    file_at = training.file_at or ended_at
    phases = {"start": clock_at - training.started_at, "train": file_at - clock_at,
              "score": ended_at - file_at, "witness": now - ended_at}
    name = f"{spec['device']} x{spec['cores']}"
    return {
        "seed": spec["seed"], "split": spec["split"], "budget": spec["budget"],
        "device": torch.cuda.get_device_name() if spec["device"] == "cuda" else name,
        "data": data.hash[:8], "sandbox": sandbox.level(), "tokens_m": training.tokens_m,
        "params_m": training.params_m, "memory_gb": trial.child.memory_gb,
        "train_seconds": phases["train"], "total_seconds": now - training.started_at,
        "n_batches": max(0, len(training.pulled_at) - 1), "versions": machine.versions(spec["device"]),
        "phases": {part: round(seconds, 3) for part, seconds in phases.items()}}


def facts_of(fields: dict, training: Training, data: Data) -> str:
    """Where time and memory went, and what is left of them: two lines for the researcher."""
    import torch

    phases, n_batches = fields["phases"], max(1, fields["n_batches"])
    limit_s = training.spec["limits"]["score_s"] + training.budget_s
    on_gpu = training.spec["device"] == "cuda"
    n_bytes = torch.cuda.get_device_properties(0).total_memory if on_gpu else machine.memory()[1]
    free_s = training.free_start_s
    free = "all of it is free" if free_s == math.inf else f"{free_s:.0f} s are free"
    return (f"{n_batches} batches of {1000 * phases['train'] / n_batches:.1f} ms, "
            f"{fields['memory_gb']:.2f} of {n_bytes / 1e9:.0f} GB\n"
            f"{training.n_rows / len(data.split('train')):.2f} passes over the data; start {phases['start']:.1f} s, "
            f"{free}; score {phases['score']:.1f} s, {limit_s:.0f} s are allowed\n")


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides what a Ctrl-C means
    sandbox.die_with_parent(spec["parent"], signal.SIGTERM)
    sandbox.adopt_orphans()
    try:
        tell("result", run(spec))
    finally:
        sandbox.sweep()


if __name__ == "__main__":
    main()
