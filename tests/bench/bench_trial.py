"""What it costs a trial that its number can be trusted: sandbox, feeding, hand-over, probe, sweep, a flooded log.

    python tests/bench/bench_trial.py [--data builtin]

One real trial of train.py is scored, for the seconds that its scoring takes here; the rest is measured part by part.
The share is of an experiment of five minutes. About a minute on two cores.
"""

import argparse
import mmap
import random
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

from lab import runner, sandbox  # noqa: E402
from lab.corpus import Data, open_data  # noqa: E402
from lab.referee import plan, watch  # noqa: E402
from prepare import logit_buffer  # noqa: E402

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


def hand_over_s(data: Data, n_asks: int, rows_an_ask: int) -> float:
    """Logits of every ask written into the shared buffer by one side, and read out of it by the other."""
    fd, n_bytes = logit_buffer(data)
    size = min(n_bytes // 8, rows_an_ask * data.max_seq_len * data.vocab_size)
    slot, logits = np.frombuffer(mmap.mmap(fd, n_bytes), np.float32, size), np.zeros(size, np.float32)

    def one() -> None:
        slot[:] = logits
        logits[:] = slot

    return n_asks * seconds(one)


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
    quiet, loud = (runner.run(code, data=data, seed=0, budget_s=5, folder=folder) for code in (TRAIN, FLOOD + TRAIN))
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
        code = (ROOT / "train.py").read_text()
        trial = runner.run(code, data=data, seed=0, budget_s=5, folder=Path(folder) / "runs")
        if trial.crashed:
            raise SystemExit(f"crash: {trial.reason}\n{trial.log[-2000:]}")
        rows_an_ask = max(1, data.eval_rows["val"] // 64)
        asks = plan(data.split("val"), data.eval_rows["val"], rows_an_ask, data.vocab_size, random.Random(0))
        extra = sum(ask.kind != "score" for ask in asks)
        parts = {
            "sandbox: Landlock, limits, the start of another Python": start_s(Path(folder)),
            f"probe and second ask: {extra} of {len(asks)} asks, of {trial.phases['score']:.1f} s of scoring":
                trial.phases["score"] * extra / len(asks),
            "hand-over: all logits into the shared buffer and out of it": hand_over_s(data, len(asks), rows_an_ask),
            "watch: processes, memory, disk, once a second": BUDGET_S * seconds(lambda: watch(0.0)),
            "sweep: the end of fifty processes left behind": sweep_s(),
            "shared memory looked through, before and after": 2 * seconds(sandbox.shared_files),
        }
        quiet, loud, kept = flooded(data, Path(folder) / "flood")
    total = sum(parts.values())
    for name, taken in {**parts, "together": total}.items():
        print(f"{name:76}{1000 * taken:8.0f} ms{taken / BUDGET_S:8.2%}")
    print(f"\na log of 20 MB/s: {quiet:.2f} -> {loud:.2f} M tokens/s where it is printed, {kept / 1000:.0f} kB kept")


if __name__ == "__main__":
    main()
