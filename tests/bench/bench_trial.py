"""What it costs a trial that its number can be trusted: sandbox, file, exam, witness, hand-over, sweep, a flooded log.

    python tests/bench/bench_trial.py [--data builtin]

One real trial of train.py and its witness give the sizes and the witness's seconds; the rest is measured part by part.
The share is of an experiment of five minutes. About a minute on two cores.
"""

import argparse
import math
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import TRAIN  # noqa: E402

from lab import exam, runner, sandbox  # noqa: E402
from lab.child import disk_left, watch  # noqa: E402
from lab.corpus import Data, open_data  # noqa: E402
from lab.ledger import Trial  # noqa: E402
from lab.wire import logits_memory, read_tensors, sealable_memory, write_tensors  # noqa: E402

BUDGET_S = 300
FLOOD = """\
import threading, time

def flood():
    while True:
        began = time.monotonic()
        print("x" * 2_000_000)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - began)))

threading.Thread(target=flood, daemon=True).start()
"""


def seconds(work: Callable[[], object], times: int = 9) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def start_s(folder: Path) -> float:
    """What the restricting program adds to the start of another."""
    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, start_new_session=True)

    program = ["/bin/true"]
    return seconds(lambda: run(sandbox.command(str(folder), str(folder), program))) - seconds(lambda: run(program))


def hand_over_s(data: Data) -> float:
    """Logits of every row written into the shared buffer by one side, and read out of it by the other."""
    fd, n_bytes = logits_memory(data.max_seq_len * data.vocab_size)
    n_rows = min(8, n_bytes // (8 * data.max_seq_len * data.vocab_size))
    size = n_rows * data.max_seq_len * data.vocab_size
    slot, logits = np.frombuffer(mmap.mmap(fd, n_bytes), np.float32, size), np.zeros(size, np.float32)

    def one() -> None:
        slot[:] = logits
        logits[:] = slot

    taken = data.eval_rows["val"] / n_rows * seconds(one)
    os.close(fd)
    return taken


def file_s(n_bytes: int) -> float:
    """A model's file written by the trial and read by the witness."""
    import torch

    tensors = {f"block.{i}": torch.zeros(n_bytes // 40) for i in range(10)}

    def one() -> None:
        fd = sealable_memory("model", 2 * n_bytes + (1 << 21))
        read_tensors(fd, write_tensors(tensors, {}, fd))
        os.close(fd)

    return seconds(one)


def exam_s(data: Data) -> float:
    """Cuts drawn, questions written, answers compared."""
    rows = data.split("val")[: data.eval_rows["val"]]
    rng = np.random.default_rng(0)
    losses = rng.random((len(rows), data.max_seq_len), np.float32)

    def one() -> None:
        cuts = exam.draw_cuts(losses, losses + 0.1, np.ones(losses.shape, bool), rng)
        exam.questions(rows, data.split("train"), cuts, data.vocab_size, rng)
        exam.verdict(losses, losses, cuts, "cpu")

    return seconds(one, 3)


def scored(data: Data, folder: Path, below: float) -> Trial:
    trial = runner.run((ROOT / "train.py").read_text(), data=data, seed=0, budget_s=5, folder=folder, last_try=True,
                       witness_below=below)
    if trial.crashed:
        raise SystemExit(f"crash: {trial.reason}\n{trial.log[-2000:]}")
    return trial


def sweep_s() -> float:
    """The end of a trial that left fifty processes behind."""
    def one() -> None:
        for _ in range(50):
            subprocess.Popen(["sleep", "100"])
        began = time.perf_counter()
        sandbox.sweep()
        taken.append(time.perf_counter() - began)

    taken: list[float] = []
    seconds(one, 3)
    return statistics.median(taken)


def flooded(data: Data, folder: Path) -> tuple[float, float, int]:
    """Tokens/s of a small trial without and with 20 MB/s of log, and the characters kept of it."""
    quiet, loud = (runner.run(code, data=data, seed=0, budget_s=5, folder=folder, last_try=True)
                   for code in (TRAIN, FLOOD + TRAIN))
    for trial in (quiet, loud):
        if trial.crashed:
            raise SystemExit(f"crash: {trial.reason}\n{trial.log[-2000:]}")
    return quiet.tokens_m / quiet.train_seconds, loud.tokens_m / loud.train_seconds, len(loud.log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="builtin")
    options = parser.parse_args()
    data = open_data(options.data)
    with tempfile.TemporaryDirectory() as folder:
        kept, dropped = (scored(data, Path(folder) / "runs", below) for below in (math.inf, -math.inf))
        parts = {
            "sandbox: namespaces, Landlock, the start of another Python": start_s(Path(folder)),
            f"file: {kept.params_m:.1f} M parameters, written and read": file_s(int(4e6 * kept.params_m)),
            "exam: cuts, questions, comparison": exam_s(data),
            "hand-over: all logits into the shared buffer and out of it": hand_over_s(data),
            "watch: processes, memory, disk, once a second": BUDGET_S * seconds(lambda: watch(disk_left())),
            "sweep: the end of fifty processes left behind": sweep_s(),
            "witness, a keep's alone": kept.phases["witness"] - dropped.phases["witness"],
        }
        quiet, loud, n_kept = flooded(data, Path(folder) / "flood")
    total = sum(parts.values())
    for name, taken in {**parts, "together": total}.items():
        print(f"{name:76}{1000 * taken:8.0f} ms{taken / BUDGET_S:8.2%}")
    print(f"\na log of 20 MB/s: {quiet:.2f} -> {loud:.2f} M tokens/s where it is printed, {n_kept / 1000:.0f} kB kept")


if __name__ == "__main__":
    main()
