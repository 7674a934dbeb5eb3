"""What several slots bring, and how busy they are beside a slow model.

    python tests/bench/bench_slots.py wall [--budget 60] [--experiments 8]   wants a quiet machine; 18 minutes
    python tests/bench/bench_slots.py busy [--scale 20] [--rounds 12]        3 minutes

wall: the real agent.py with the project's train.py on builtin, by the tuner: one slot bound to one core against two
slots of a core each, from the start of the command to its end. The rows of both sessions must obey every invariant.

busy: four slots, whose trials only sleep for a budget of 300 s / SCALE, and a loopback server that answers after
60 s / SCALE, one time in five with an answer that needs a repair. The loop, git, the proposer and the client are the
project's own. Counted is the time from the moment that all slots have started to the last start of a trial.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import invariants  # noqa: E402
import numpy as np  # noqa: E402
from conftest import make_text  # noqa: E402
from fakes import ROOT, edit, make_checkout, start_agent  # noqa: E402
from model_server import ModelServer, Step, answer  # noqa: E402

import agent  # noqa: E402
from lab import baseline, ledger, opening, proposer, runner  # noqa: E402
from lab.corpus import open_data  # noqa: E402
from lab.ledger import Ending, Trial  # noqa: E402
from lab.runner import Slot  # noqa: E402

BUDGET_S, ANSWER_S, N_SLOTS = 300, 60, 4
PLACES = ("import torch", "BATCH = 8  # rows a step", "    torch.manual_seed(SEED)", "    loss = torch.zeros(())",
          "        loss.backward()", "    finish(model)")  # lines of the stand-in's train.py


# One slot against two ---------------------------------------------------------------------------


def wall(options: argparse.Namespace, folder: Path) -> None:
    open_data("builtin")
    cores, seconds = sorted(os.sched_getaffinity(0))[:2], {}
    for n_slots in (1, 2):
        checkout = make_checkout(folder / str(n_slots), (ROOT / "train.py").read_text())
        os.sched_setaffinity(0, cores[:n_slots])
        began = time.monotonic()
        process = start_agent(checkout, "--researcher", "tuner", "--tag", "t", "--budget", f"{options.budget:g}",
                              "--experiments", str(options.experiments), "--slots", str(n_slots))
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors)
        seconds[n_slots] = time.monotonic() - began
        invariants.check(checkout)
        rows = ledger.read(checkout / "results.tsv")
        own_s = statistics.median(row.total_seconds for row in rows)
        n_keeps = sum(row.status is ledger.Status.KEEP for row in rows)
        print(f"{n_slots} of a core each: {seconds[n_slots]:.0f} s for {len(rows)} rows, {n_keeps} kept, "
              f"a trial {own_s:.1f} s (median)", flush=True)
    print(f"wall time of two slots, of that of one: {seconds[2] / seconds[1]:.3f}")


# Four slots and a slow model --------------------------------------------------------------------


def answers(wait_s: float) -> Callable[[dict], Step]:
    """One in five first names a line that is not there, one in nine crashes, one in eight gains, the rest lose."""
    number, lock = 0, threading.Lock()

    def next_answer(request: dict) -> Step:
        nonlocal number
        with lock:
            number += 1
            n = number
        word = "CRASH" if n % 9 == 0 else "GAIN" if n % 8 == 0 else "LOSS"
        line = PLACES[n % len(PLACES)]
        indent = line[: len(line) - len(line.lstrip())]
        old = "NO_SUCH_LINE = 1" if n % 5 == 0 else line
        return answer(edit(f"idea {n}", (old, f"{line}\n{indent}{word}_{n} = 0")), wait_s)

    return next_answer


def sleeper(spans: dict[int, list[tuple[float, float]]]) -> Callable[..., Trial]:
    """In place of runner.run: a trial that sleeps, and what its words say of its loss."""

    def run(code: str, *, data, seed: int, budget_s: float, folder: Path, slot: Slot, split: str, is_baseline: bool,
            **_: object) -> Trial:
        began, crashed = time.monotonic(), "CRASH_" in code
        time.sleep(budget_s * (0.05 if crashed else 1.0))
        if is_baseline:
            baseline.write(folder, baseline.Baseline(1.0, 1, np.zeros(1)))
        spans.setdefault(slot.number, []).append((began, time.monotonic()))
        value = None if crashed else 3.0 - 0.01 * code.count("GAIN_") + 0.1 * code.count("LOSS_")
        return Trial(value, "boom" * crashed, seed, split, budget_s, "cpu x1", data.hash[:8], "none", budget_s,
                     budget_s, witnessed=True, ending=Ending.CRASHED if crashed else Ending.SCORED)

    return run


def busy(options: argparse.Namespace, folder: Path) -> None:
    (corpus := folder / "corpus").mkdir()
    for i in range(20):
        (corpus / f"{i}.txt").write_text(make_text(i, 20_000))
    checkout, spans = make_checkout(folder / "checkout"), {}
    agent.ROOT = runner.ROOT = checkout
    agent.report.Drawer.draw = lambda self: None  # the report's drawing is not scaled down
    runner.run = sleeper(spans)
    opening.slots_here = lambda *words: [Slot(n, f"slot {n}") for n in range(N_SLOTS)]
    proposer.PATIENCE_S /= options.scale
    n, said = N_SLOTS * options.rounds, io.StringIO()
    with ModelServer([answers(ANSWER_S / options.scale)]) as server, contextlib.redirect_stdout(said):
        os.environ["ANTHROPIC_BASE_URL"] = server.url
        code = agent.main(["--researcher", "llm", "--tag", "t", "--data", str(corpus), "--experiments", str(n),
                           "--budget", f"{BUDGET_S / options.scale:g}"])
    if code:
        raise SystemExit(said.getvalue())
    invariants.check(checkout)
    kinds = [str(row.status) for row in ledger.read(checkout / "results.tsv")]
    print(f"{len(kinds)} trials of {BUDGET_S / options.scale:g} s in {N_SLOTS} slots, a model that takes "
          f"{ANSWER_S / options.scale:g} s: {', '.join(f'{kinds.count(k)} {k}' for k in sorted(set(kinds)))}")
    tell(spans)


def tell(spans: dict[int, list[tuple[float, float]]]) -> None:
    """Shares and waits, without the time of the baseline and of the end, in which slots are free by design."""
    spans[0] = spans[0][1:]  # without the baseline
    start, end = max(s[0][0] for s in spans.values()), max(s[-1][0] for s in spans.values())
    inside = {slot: sum(max(0.0, min(b, end) - max(a, start)) for a, b in s) for slot, s in spans.items()}
    for slot, busy_s in sorted(inside.items()):
        print(f"slot {slot}: {busy_s / (end - start):.1%} in trials")
    waits = sorted(b[0] - a[1] for s in spans.values() for a, b in zip(s, s[1:], strict=False))
    print(f"all: {sum(inside.values()) / len(inside) / (end - start):.1%} in trials; a free slot waits "
          f"{statistics.median(waits):.2f} s (median), {waits[int(0.9 * len(waits))]:.2f} s (nine in ten), "
          f"{waits[-1]:.2f} s at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("wall", "busy"))
    parser.add_argument("--budget", type=float, default=60, help="seconds of training a trial (wall)")
    parser.add_argument("--experiments", type=int, default=8, help="beside the baseline (wall)")
    parser.add_argument("--scale", type=float, default=20, help="by which seconds are shorter (busy)")
    parser.add_argument("--rounds", type=int, default=12, help="experiments a slot (busy)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTORESEARCH_CACHE"] = str(Path(folder) / "cache")
        {"wall": wall, "busy": busy}[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
