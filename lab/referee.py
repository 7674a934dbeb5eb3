"""The trusted process of a trial: feeds tokens, keeps the clock, scores logits, then starts the witness.

    python -m lab.referee           runs the trial that a JSON line on stdin describes; answers with JSON lines
    python -m lab.referee --serve   serves the train.py that started us by hand; prints a summary

Promises: training tokens flow only while the budget lasts; validation inputs only after the file of what was learnt is
whole; targets and byte counts never. The metric is computed here, from logits, and nothing a trial prints is parsed.
When this process ends, so has every process of the trial. It does not know what an experiment is and keeps nothing.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import baseline, exam, machine, sandbox
from lab.baseline import Baseline
from lab.channel import Channel, ContractBroken, HungUp, tell
from lab.child import Child, child_of, last_error, remove
from lab.corpus import Data
from lab.feeding import Facts, feed, seal_file
from lab.ledger import Ending
from lab.scoring import Answers, Scorer, ask_all, batches, bits_per_byte
from lab.wire import FILE, HEADER_BYTES, PARAMS, ROWS, blocks, file_capacity, sealable_memory, sealed_copy

START_FACTOR, START_SLACK_S = 1.5, 10.0  # start-up that is free, by the baseline's own seconds
MODULE_SHARE = 1.2                       # bytes of a file, of what its module holds, beside the header
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

    facts: Facts
    answers: Answers | None
    broken: ContractBroken | None
    log: str


def measure(spec: dict, data: Data, known: Baseline | None, file_fd: int) -> Measured:
    """Train, write the file, score, end."""
    facts, answers, broken = Facts(time.monotonic()), None, None
    idle_gb = machine.card_used_gb() if spec["device"] == "cuda" else 0.0
    with child_of(spec, data, file_fd, 0, is_witness=False) as child:
        tell("start", None)
        try:
            answers = train_and_score(child, spec, data, known, file_fd, facts)
        except ContractBroken as error:
            broken, child.patience_s = error, DYING_S
        facts.ended_at = time.monotonic()
        facts.memory_gb = machine.card_used_gb() - idle_gb if spec["device"] == "cuda" else 0.0
    facts.memory_gb = facts.memory_gb or child.peak_gb
    if spec["device"] == "cuda" and (note := machine.wait_for_card(idle_gb)):
        facts.notes.append(note)
    log = child.channel.log.text()
    if isinstance(broken, HungUp) or (broken and child.code > 0):  # it was late because it was dying of an error
        broken = ContractBroken(last_error(log, child.code), Ending.CRASHED)
    return Measured(facts, answers, broken, log)


def train_and_score(child: Child, spec: dict, data: Data, known: Baseline | None, file_fd: int,
                    facts: Facts) -> Answers:
    """One trial from its first request to its last logits. Raises ContractBroken."""
    limits = Limits(**spec["limits"])
    free_start_s = float("inf") if known is None or spec["is_baseline"] else (
        START_FACTOR * known.start_s + START_SLACK_S)
    scorer = Scorer(data, spec["split"], spec["device"], spec.get("threads"))  # imports torch while the trial does
    feed(child.channel, data, spec, (limits.start_s, free_start_s), facts)
    seal_file(file_fd)
    tell("score", None)
    answers = score(child, scorer, limits, spec["budget"], facts.rows_an_ask, np.arange(len(scorer.rows)),
                    scorer.rows[:, :-1])
    child.patience_s = limits.stop_s
    if facts.file_bytes > MODULE_SHARE * answers.holds_bytes + HEADER_BYTES:
        raise ContractBroken(f"its file of {facts.file_bytes} bytes holds more than its module, {answers.holds_bytes}")
    return answers


def score(child: Child, scorer: Scorer, limits: Limits, budget_s: float, wanted_rows: int, order: np.ndarray,
          inputs: np.ndarray) -> Answers:
    rows_an_ask = scorer.rows_an_ask(wanted_rows, os.fstat(child.logits_fd).st_size)
    deadline = time.monotonic() + limits.score_s + budget_s
    return ask_all(child.channel, scorer, batches(order, rows_an_ask), inputs, child.logits_fd, limits.first_s,
                   deadline)


def had_its_machine(spec: dict, folder: Path, probe_before: list[float], facts: Facts) -> str:
    """Why a trial did not have its machine, "" where it had or was too short to tell."""
    if not probe_before:
        return ""
    probes = [*probe_before, machine.probe()]
    why = machine.verdict(facts.lost, probes, machine.earlier_probes(folder))
    if not why:
        machine.remember(folder, probes)
    return why


def ask_witness(spec: dict, data: Data, known: Baseline | None, file_fd: int, trial: Measured,
                counts: np.ndarray) -> tuple[ContractBroken | None, str]:
    """(what the witness proves against the trial, or None; what it printed). The trial has ended and is swept.

    counts: bool (N, T), false for targets that weigh nothing in the score.
    """
    tell("witness", None)
    dice = np.random.default_rng()  # from the system's entropy: nobody could know it while the trial ran
    rows, losses = data.split(spec["split"])[: len(counts)], trial.answers.losses
    cuts = exam.draw_cuts(losses, baseline_losses(spec, known, losses), counts, dice)
    inputs = exam.questions(rows, cuts, data.vocab_size, dice)
    facts = Facts(time.monotonic())
    limits = Limits(**spec["limits"])
    scorer = Scorer(data, spec["split"], spec["device"], spec.get("threads"))
    answers, broken = None, None
    copy_fd = sealed_copy(file_fd, trial.facts.file_bytes)
    with child_of(spec, data, copy_fd, trial.facts.file_bytes, is_witness=True) as child:
        try:
            limit_s = WITNESS_FACTOR * trial.facts.start_s() + START_SLACK_S
            load(child.channel, limit_s, trial.facts, facts)
            answers = score(child, scorer, limits, spec["budget"], trial.facts.rows_an_ask, dice.permutation(len(rows)),
                            inputs)
            child.patience_s = limits.stop_s
        except ContractBroken as error:
            broken, child.patience_s = error, DYING_S
    os.close(copy_fd)
    log = child.channel.log.text()
    if broken is not None:
        why = last_error(log, child.code) if isinstance(broken, HungUp) or child.code > 0 else str(broken)
        return ContractBroken(f"its train.py does not run with a stream that is already over: {why}",
                              Ending.UNREPEATABLE), f"\n[the witness printed:]\n{log}"
    if answers.dtype != trial.answers.dtype:
        return ContractBroken("its logits have another type in a second process", Ending.FOUL), ""
    ending, why = exam.verdict(losses, answers.losses, cuts, spec["device"])
    return (None if ending is Ending.SCORED else ContractBroken(why, ending)), ""


def baseline_losses(spec: dict, known: Baseline | None, losses: np.ndarray) -> np.ndarray | None:
    """The baseline's losses where they are of the same rows: it was scored on the validation split."""
    if known is None or known.losses is None or spec["split"] != "val" or known.losses.shape != losses.shape:
        return None
    return known.losses


def load(channel: Channel, limit_s: float, trial: Facts, facts: Facts) -> None:
    """Wait until the witness has loaded the file. Raises ContractBroken."""
    deadline = facts.started_at + limit_s
    while True:
        operation, count = channel.request(deadline, f"it did not load its weights within {limit_s:.0f} s")
        if operation == FILE:
            return
        if operation not in (PARAMS, ROWS):
            raise ContractBroken(f"protocol: request {operation!r} {count} of a witness")


def run(spec: dict) -> dict:
    """Run one trial, and its witness where the number would count; return the fields of a ledger.Trial."""
    folder, data = Path(spec["folder"]), Data.load(Path(spec["data"]))
    known, file_fd = baseline.read(folder), sealable_memory("model", file_capacity())
    probes = [machine.probe()] if spec["budget"] >= machine.LEAST_BUDGET_S else []
    trial = measure(spec, data, known, file_fd)
    broken, val_bpb, witnessed, log = trial.broken, None, False, trial.log
    if broken is None:
        broken = busy(spec, folder, probes, trial.facts)
    if broken is None:
        if spec["is_baseline"]:
            baseline.keep_cache(folder)
        n_bytes = data.token_bytes()[data.split(spec["split"])[: data.eval_rows[spec["split"]], 1:].astype(np.int64)]
        val_bpb = bits_per_byte(trial.answers.losses, n_bytes)
        if val_bpb < spec["witness_below"]:
            broken, printed = ask_witness(spec, data, known, file_fd, trial, n_bytes > 0)
            witnessed, log = broken is None, log + printed
    if witnessed:
        keep(spec, folder, file_fd, trial)
    remove(folder / "trial")
    return fields_of(spec, data, trial.facts) | {
        "val_bpb": None if broken else val_bpb, "reason": str(broken or ""), "witnessed": witnessed, "log": log,
        "ending": broken.ending if broken else Ending.SCORED}


def busy(spec: dict, folder: Path, probes: list[float], facts: Facts) -> ContractBroken | None:
    """The verdict on a trial that did not have its machine; the last try of an experiment counts with a note."""
    why = had_its_machine(spec, folder, probes, facts)
    if why and not spec["last_try"]:
        return ContractBroken(why, Ending.BUSY)
    if why:
        facts.notes.append(why)
    return None


def keep(spec: dict, folder: Path, file_fd: int, trial: Measured) -> None:
    """Leave the model's file to the agent, which keeps it where the experiment is kept."""
    with open(folder / "candidate.safetensors", "wb") as target:
        for block in blocks(file_fd, trial.facts.file_bytes):
            target.write(block)
    if spec["is_baseline"]:
        baseline.write(folder, trial.facts.start_s(), trial.facts.file_bytes, trial.answers.losses)


def fields_of(spec: dict, data: Data, facts: Facts) -> dict:
    """The fields of a ledger.Trial that were measured."""
    now, started = time.monotonic(), facts.started_at
    clock = facts.clock_at or facts.file_at or facts.ended_at
    whole = facts.file_at or facts.ended_at
    moments = [started, clock, whole, facts.ended_at, now]
    parts = ("start", "train", "score", "witness")
    phases = {part: round(b - a, 3) for part, a, b in zip(parts, moments[:-1], moments[1:], strict=True)}
    return {"seed": spec["seed"], "split": spec["split"], "budget": spec["budget"], "data": data.hash[:8],
            "sandbox": sandbox.level(), "device": device_name(spec["device"]), "tokens_m": facts.tokens_m,
            "params_m": facts.params_m, "memory_gb": facts.memory_gb, "train_seconds": phases["train"],
            "total_seconds": now - started, "phases": phases, "note": "; ".join(facts.notes)}


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{device} x{os.cpu_count()}"


# ---------------------------------------------------------------------------------------------------------------------
# Entry points
# ---------------------------------------------------------------------------------------------------------------------


def serve(spec: dict) -> None:
    """Referee for the process that started us; what it prints goes to its own terminal, so there is no log."""
    data = Data.load(Path(spec["data"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for train.py; its end is ours
    channel = Channel(spec["tokens_fd"], spec["events_fd"], None)
    facts, limits = Facts(time.monotonic()), Limits()
    scorer = Scorer(data, spec["split"], spec["device"], None)
    try:
        feed(channel, data, spec, (limits.start_s, float("inf")), facts)
        seal_file(spec["file_fd"])
        child = Child(channel, spec["logits_fd"])
        answers = score(child, scorer, limits, spec["budget"], facts.rows_an_ask, np.arange(len(scorer.rows)),
                        scorer.rows[:, :-1])
    except ContractBroken as error:
        print(f"crash: {error}", file=sys.stderr)
        return
    facts.ended_at = time.monotonic()
    n_bytes = data.token_bytes()[scorer.rows[:, 1:].astype(np.int64)]
    print(f"val_bpb: {bits_per_byte(answers.losses, n_bytes):.6f}")
    trial = fields_of(spec, data, facts)
    for name in ("train_seconds", "total_seconds", "tokens_m", "params_m", "seed", "budget", "device", "data"):
        value = trial[name]
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
        return
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
