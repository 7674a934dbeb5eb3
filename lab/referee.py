"""The trusted process of a trial: feeds tokens, keeps the clock, scores logits, then starts the witness.

    python -m lab.referee      runs the trial that a JSON line on stdin describes; answers with JSON lines

Promises: training tokens flow only while the budget lasts; validation inputs only after the file of what was learnt is
whole; targets and byte counts never. The metric is computed here, from logits, and nothing a trial prints is parsed.
When this process ends, so has every process of the trial. It does not know what an experiment is and keeps nothing.
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

from lab import baseline, exam, machine, sandbox
from lab.baseline import Baseline
from lab.child import CACHE_LIMITS, Child, ContractBroken, child_of, remove, tell
from lab.corpus import Data
from lab.feeding import Training, file_memory
from lab.ledger import Ending
from lab.scoring import Answers, Scorer, bits_per_byte
from lab.wire import FILE, PARAMS, ROWS, mapped, seal, sealable_memory

START_FACTOR, START_SLACK_S = 1.5, 10.0  # start-up that is free, by the baseline's own seconds
DYING_S = 1.0                            # that a process may take to end by itself, with its own error
WITNESS_FACTOR = 3.0                     # how much longer than its trial a witness may take to start


@dataclass(frozen=True)
class Limits:
    """Seconds of patience; each ends the trial, and the reason in its row says which it was."""

    start_s: float = 300.0     # imports, model, compile and warm-up, until the first batch is asked for
    first_s: float = 30.0      # the first logits, whatever the medians say
    score_s: float = 180.0     # to the last logits, beside the budget itself: a slow model trains slowly too
    stop_s: float = 10.0       # from the last logits to the end of the process


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Measured:
    """A trial that has ended and is swept."""

    training: Training
    answers: Answers | None
    broken: ContractBroken | None
    log: str
    ended_at: float
    memory_gb: float
    note: str                  # GPU memory that it held on to


def run(spec: dict) -> dict:
    """Run one trial, and its witness where the number would count; return the fields of a ledger.Trial."""
    folder, data = Path(spec["folder"]), Data.load(Path(spec["data"]))
    known, file_fd = baseline.read(folder), file_memory()
    probe_s = machine.probe() if spec["budget"] >= machine.LEAST_BUDGET_S else None
    trial = measure(spec, data, known, file_fd)
    broken, notes, log = trial.broken, [trial.training.note, trial.note], trial.log
    val_bpb, witnessed = None, False
    if broken is None and probe_s and (why := machine.verdict(folder, trial.training.lost, probe_s)):
        if spec["last_try"]:
            notes.append(why)
        else:
            broken = ContractBroken(why, Ending.BUSY)
    if broken is None:
        if spec["is_baseline"] and not (folder / "cache").exists():  # every later trial starts from this one
            notes.append(sandbox.copy_plain(folder / "trial" / "cache", folder / "cache", *CACHE_LIMITS))
        rows = data.split(spec["split"])[: data.eval_rows[spec["split"]]]
        n_bytes = data.token_bytes()[rows[:, 1:].astype(np.int64)]
        val_bpb = bits_per_byte(trial.answers.losses, n_bytes)
        if val_bpb < spec["witness_below"]:
            broken, printed = ask_witness(spec, data, known, file_fd, trial, n_bytes > 0)
            witnessed, log = broken is None, log + printed
    remove(folder / "trial")
    return fields_of(spec, data, trial) | {
        "val_bpb": None if broken else val_bpb, "reason": str(broken or ""), "witnessed": witnessed, "log": log,
        "ending": broken.ending if broken else Ending.SCORED, "note": "; ".join(filter(None, notes))}


def measure(spec: dict, data: Data, known: Baseline | None, file_fd: int) -> Measured:
    """Train, write the file, score, end; whatever the trial does wrong is a value."""
    limits, on_gpu, answers, broken = Limits(**spec["limits"]), spec["device"] == "cuda", None, None
    is_free = known is None or spec["is_baseline"]
    training = Training(spec, math.inf if is_free else START_FACTOR * known.start_s + START_SLACK_S)
    idle_gb = machine.card_used_gb() if on_gpu else 0.0
    with child_of(spec, data, file_fd) as child:
        tell("start", None)
        try:
            scorer = Scorer(data, spec["split"], spec["device"])  # imports torch while the trial does
            training.feed(child, data, file_fd, limits.start_s)
            tell("score", None)
            answers = score(child, scorer, spec, np.arange(len(scorer.rows)), scorer.rows[:, :-1], training)
        except ContractBroken as error:
            broken = error
        ended_at = time.monotonic()
        card_gb = machine.card_used_gb() - idle_gb if on_gpu else 0.0
        child.end(limits.stop_s if broken is None else DYING_S)
    note = machine.wait_for_card(idle_gb) if on_gpu else ""
    return Measured(training, answers, child.explained(broken), child.log_text(), ended_at, card_gb or child.peak_gb,
                    note)


def score(child: Child, scorer: Scorer, spec: dict, order: np.ndarray, inputs: np.ndarray,
          training: Training) -> Answers:
    limits = Limits(**spec["limits"])
    deadline = time.monotonic() + limits.score_s + spec["budget"]
    return scorer.ask_all(child, order, inputs, training.rows_an_ask, limits.first_s, deadline)


def ask_witness(spec: dict, data: Data, known: Baseline | None, file_fd: int, trial: Measured,
                counts: np.ndarray) -> tuple[ContractBroken | None, str]:
    """(what the witness proves against the trial, or None; what it printed). The trial has ended and is swept.

    counts: bool (N, T), false for targets that weigh nothing in the score. What is proven is kept on the disk.
    """
    tell("witness", None)
    rng = np.random.default_rng()  # from the system's entropy: nobody could know it while the trial ran
    losses, answers, broken = trial.answers.losses, None, None
    usual = known.losses if known and spec["split"] == "val" and known.losses.shape == losses.shape else None
    cuts = exam.draw_cuts(losses, usual, counts, rng)
    scorer = Scorer(data, spec["split"], spec["device"])
    inputs = exam.questions(scorer.rows, cuts, data.vocab_size, rng)
    copy_fd = sealed_copy(file_fd, trial.training.file_bytes)
    with child_of(spec, data, copy_fd, trial.training.file_bytes) as child:
        try:
            load(child, WITNESS_FACTOR * trial.training.start_s() + START_SLACK_S)
            answers = score(child, scorer, spec, rng.permutation(len(losses)), inputs, trial.training)
        except ContractBroken as error:
            broken = error
        child.end(Limits(**spec["limits"]).stop_s if broken is None else DYING_S)
    if broken is not None and broken.ending is not Ending.BUSY:
        broken = ContractBroken("its train.py does not run with a stream that is already over: "
                                f"{child.explained(broken)}", Ending.UNREPEATABLE)
    if broken is not None:
        return broken, f"\n[the witness printed:]\n{child.log_text()}"
    if answers.dtype != trial.answers.dtype:
        return ContractBroken("its logits have another type in a second process", Ending.FOUL), ""
    ending, why = exam.verdict(losses, answers.losses, cuts, spec["device"])
    if ending is not Ending.SCORED:
        return ContractBroken(why, ending), ""
    keep(spec, copy_fd, trial)
    return None, ""


def sealed_copy(file_fd: int, n_bytes: int) -> int:
    """A new file of the same bytes. Position, locks and holes of the old one are words that a trial could leave."""
    copy_fd = sealable_memory("copy", n_bytes)
    with mapped(file_fd, n_bytes) as content, open(copy_fd, "wb", closefd=False) as target:
        target.write(content)
    os.lseek(copy_fd, 0, os.SEEK_SET)
    seal(copy_fd)
    os.close(file_fd)
    return copy_fd


def load(child: Child, limit_s: float) -> None:
    """Wait until the witness has loaded the file. Raises ContractBroken."""
    deadline = time.monotonic() + limit_s
    while True:
        operation, count = child.request(deadline, f"it did not load its weights within {limit_s:.0f} s")
        if operation == FILE:
            return
        if operation not in (PARAMS, ROWS):
            raise ContractBroken(f"protocol: request {operation!r} {count} of a witness")


def keep(spec: dict, copy_fd: int, trial: Measured) -> None:
    """Leave the model's file to the agent, which keeps it where the experiment is kept; a baseline's losses too."""
    folder = Path(spec["folder"])
    with mapped(copy_fd, trial.training.file_bytes) as content:
        (folder / "candidate.safetensors").write_bytes(content)
    if spec["is_baseline"]:
        baseline.write(folder, trial.training.start_s(), trial.answers.losses)


def fields_of(spec: dict, data: Data, trial: Measured) -> dict:
    """The fields of a ledger.Trial that were measured."""
    training, now = trial.training, time.monotonic()
    clock_at = training.clock_at or training.file_at or trial.ended_at
    moments = [training.started_at, clock_at, training.file_at or trial.ended_at, trial.ended_at, now]
    parts = ("start", "train", "score", "witness")
    phases = {part: round(b - a, 3) for part, a, b in zip(parts, moments[:-1], moments[1:], strict=True)}
    return {"seed": spec["seed"], "split": spec["split"], "budget": spec["budget"], "data": data.hash[:8],
            "sandbox": sandbox.level(), "device": device_name(spec["device"]), "tokens_m": training.tokens_m,
            "params_m": training.params_m, "memory_gb": trial.memory_gb, "train_seconds": phases["train"],
            "total_seconds": now - training.started_at, "phases": phases}


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{device} x{os.cpu_count()}"


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
