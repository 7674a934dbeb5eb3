"""Speed and worth of train.py on this machine, beside a plain GPT of about its size with AdamW.

    python tests/bench/bench_train.py                         tokens/s of the two, a short trial each
    python tests/bench/bench_train.py --budget 60 --seeds 3   the bar: mean val_bpb of both, and the difference
    python tests/bench/bench_train.py --tune                  the plain GPT at several learning rates

Both run as trials of the referee, on the same corpus, budget and threads.
"""

import argparse
import math
import re
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab import runner  # noqa: E402
from lab.corpus import Data, open_data  # noqa: E402
from lab.ledger import Trial  # noqa: E402

LEARNING_RATES = (1e-3, 2e-3, 4e-3, 6e-3, 1e-2, 2e-2)


def plain(lr: float | None = None) -> str:
    """The plain GPT's code, with another learning rate if one is given."""
    code = (ROOT / "tests/bench/plain_gpt.py").read_text()
    return code if lr is None else re.sub(r"(?m)^LR = \S+", f"LR = {lr}", code, count=1)


def trials(code: str, data: Data, budget_s: float, seeds: int) -> list[Trial]:
    results = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            results.append(runner.run(code, data=data, seed=seed, budget_s=budget_s, folder=Path(folder) / "runs",
                                      witness_below=-math.inf, last_try=True))
        if results[-1].crashed:
            raise SystemExit(f"crash: {results[-1].reason}\n{results[-1].log[-2000:]}")
    return results


def show(name: str, results: list[Trial]) -> float:
    """Print one line of the table; returns the mean val_bpb."""
    scores = [trial.val_bpb for trial in results]
    speed = statistics.mean(trial.tokens_m * 1e6 / trial.train_seconds for trial in results)
    spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
    print(f"{name:28}{statistics.mean(scores):10.4f}{spread:9.4f}{speed:12,.0f}{results[0].params_m:10.2f}"
          f"{results[0].memory_gb:8.2f}  {len(scores)}", flush=True)
    return statistics.mean(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=10, help="seconds a trial")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--tune", action="store_true", help="the plain GPT at several learning rates")
    options = parser.parse_args()
    data = open_data(options.data)
    print(f"{'':28}{'val_bpb':>10}{'spread':>9}{'tokens/s':>12}{'params M':>10}{'GB':>8}  n")
    if options.tune:
        for lr in LEARNING_RATES:
            show(f"plain GPT, lr {lr:g}", trials(plain(lr), data, options.budget, options.seeds))
        return
    ours = show("train.py", trials((ROOT / "train.py").read_text(), data, options.budget, options.seeds))
    theirs = show("plain GPT, AdamW", trials(plain(), data, options.budget, options.seeds))
    print(f"train.py is {1 - ours / theirs:.1%} lower")


if __name__ == "__main__":
    main()
