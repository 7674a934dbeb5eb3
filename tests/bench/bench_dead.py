"""What an experiment costs beside its training, second by second, and scoring beside the forward pass alone.

    python tests/bench/bench_dead.py [--budget 10] [--trials 2] [--data builtin]

Runs train.py as it stands, as trials of the referee. The copy that runs does one thing more: before it trains, it
computes the logits of as many rows as the referee will ask for, and then their loss, and prints the seconds. That is
what scoring is compared with: the hand-over of logits, the probe and the asks made twice come on top.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab import runner  # noqa: E402
from lab.corpus import Data, open_data  # noqa: E402
from lab.ledger import Trial  # noqa: E402

TRAIN = "    train(runner, optimizer, rows, parts)\n"
FORWARD = """\
    with torch.no_grad():
        n = rows * (2 if device.type == "cpu" else 1)  # as many at a time as finish() has itself asked for
        x = torch.randint(VOCAB_SIZE, (n, MAX_SEQ_LEN), device=device)
        for name, targets in (("logits", None), ("loss", x)):
            runner(x, targets)
            began = time.perf_counter()
            for _ in range(-(-{rows} // n)):
                y = runner(x, targets)
            y.flatten()[0].item()
            print(f"{{name}} {{time.perf_counter() - began:.3f}}", flush=True)
"""


def imports() -> dict[str, float]:
    """Seconds until a fresh interpreter has imported: nothing, torch, what train.py needs."""
    programs = {"interpreter": "", "import torch": "import torch", "all imports of train.py": "import train"}
    found = {}
    for name, program in programs.items():
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
            taken.append(time.perf_counter() - began)
        found[name] = min(taken)
    return found


def trial(code: str, data: Data, budget_s: float, seed: int, folder: Path) -> Trial:
    result = runner.run(code, data=data, seed=seed, budget_s=budget_s, folder=folder)
    if result.crashed:
        raise SystemExit(f"crash: {result.reason}\n{result.log[-2000:]}")
    runner.keep_cache(folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=10, help="seconds a trial")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--data", default="builtin")
    options = parser.parse_args()
    data, code = open_data(options.data), (ROOT / "train.py").read_text()
    assert code.count(TRAIN) == 1
    code = code.replace(TRAIN, FORWARD.format(rows=data.eval_rows["val"]) + TRAIN)
    for name, seconds in imports().items():
        print(f"{name:40}{seconds:8.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        results = [trial(code, data, options.budget, seed, Path(folder) / "trials") for seed in range(options.trials)]
    forward = {name: [float(re.search(rf"^{name} (\S+)$", result.log, re.MULTILINE)[1]) for result in results]
               for name in ("logits", "loss")}
    print(f"\n{'trial':40}" + "".join(f"{n:>8}" for n in range(len(results))) + "    (the first with an empty cache)")
    for n, result in enumerate(results):
        result.phases["start"] -= sum(seconds[n] for seconds in forward.values())
    for phase in ("start", "train", "score", "stop"):
        print(f"{phase:40}" + "".join(f"{result.phases[phase]:8.2f}" for result in results) + " s")
    for name, seconds in forward.items():
        print(f"{'forward pass of the scored rows: ' + name:40}" + "".join(f"{s:8.2f}" for s in seconds) + " s")
        ratios = [result.phases["score"] / s for result, s in zip(results, seconds, strict=True)]
        print(f"{'scoring, of that':40}" + "".join(f"{ratio:8.2f}" for ratio in ratios)
              + f"    mean {statistics.mean(ratios):.2f}")


if __name__ == "__main__":
    main()
