"""Dead time of an experiment: what it costs beside its training, by phase, and scoring beside the forward pass alone.

    python tests/bench/bench_dead.py [--budget 10] [--trials 2] [--data builtin]

Runs train.py as it is, as trials of the referee: a baseline with an empty compile cache, then trials that start from
its cache, once as a discard without a witness and once as a keep with one. Before it trains, the copy that runs
computes the logits of as many rows as the referee will ask for, and prints the seconds.
"""

import argparse
import math
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab import runner  # noqa: E402
from lab.corpus import Data, open_data  # noqa: E402
from lab.ledger import Trial  # noqa: E402
from prepare import default_device  # noqa: E402

TRAIN = "    train(model, Optimizer(model), rows, parts)\n"
FORWARD = """\
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        x = torch.randint(VOCAB_SIZE, (min(rows, 4), MAX_SEQ_LEN), device=device)
        model(x)
        began = time.perf_counter()
        for _ in range(-(-{rows} // len(x))):
            y = model(x)
        y.flatten()[0].item()
        print(f"forward {{time.perf_counter() - began:.3f}}", flush=True)
"""
PHASES = ("start", "file", "score", "stop", "witness")
TARGETS_S = {  # of a warm trial; the witness is a keep's alone
    "cpu": {"start": 6.0, "file": 0.5, "score": 4.0, "stop": 1.5, "witness": 8.0},
    "cuda": {"start": 12.0, "file": 1.0, "score": 5.0, "stop": 2.0, "witness": 12.0}}


def trial(code: str, data: Data, budget_s: float, folder: Path, **what: object) -> Trial:
    result = runner.run(code, data=data, seed=0, budget_s=budget_s, folder=folder, last_try=True, **what)
    if result.crashed:
        raise SystemExit(f"crash: {result.reason}\n{result.log[-2000:]}")
    return result


def dead_s(result: Trial, budget_s: float) -> dict[str, float]:
    """Seconds of each phase; what comes after the last logits counts as stop, and a witness is in it."""
    forward_s = float(re.search(r"(?m)^forward (\S+)$", result.log)[1])
    return {"start": result.phases["start"] - forward_s, "file": result.phases["train"] - budget_s,
            "score": result.phases["score"], "stop": result.phases["witness"], "witness": 0.0, "forward": forward_s}


def measure(code: str, data: Data, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Dead seconds of each kind of trial; the least of several."""
    cold = dead_s(trial(code, data, options.budget, folder, is_baseline=True, witness_below=-math.inf), options.budget)
    found = {"cold": cold}
    for kind, below in (("warm discard", -math.inf), ("warm keep", math.inf)):
        runs = [dead_s(trial(code, data, options.budget, folder, witness_below=below), options.budget)
                for _ in range(options.trials)]
        found[kind] = {phase: min(run[phase] for run in runs) for phase in runs[0]}
    stop_s, keep = found["warm discard"]["stop"], found["warm keep"]
    found["warm keep"] |= {"stop": stop_s, "witness": keep["stop"] - stop_s - keep["forward"]}  # it has one too
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=10, help="seconds a trial")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--data", default="builtin")
    options = parser.parse_args()
    data, code = open_data(options.data), (ROOT / "train.py").read_text()
    assert code.count(TRAIN) == 1
    code = code.replace(TRAIN, FORWARD.format(rows=data.eval_rows["val"]) + TRAIN)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(code, data, options, Path(folder))
    targets = TARGETS_S.get(default_device(), TARGETS_S["cpu"])
    print(f"{'dead seconds':14}" + "".join(f"{kind:>14}" for kind in found) + f"{'target':>14}")
    for phase in PHASES:
        print(f"{phase:14}" + "".join(f"{run[phase]:14.2f}" for run in found.values()) + f"{targets[phase]:14.2f}")
    totals = [sum(run[phase] for phase in PHASES) for run in found.values()]
    print(f"{'together':14}" + "".join(f"{total:14.2f}" for total in totals) + f"{sum(targets.values()):14.2f}")
    print("scoring, of the forward pass of its rows: "
          + ", ".join(f"{run['score'] / run['forward']:.2f} ({kind})" for kind, run in found.items()))


if __name__ == "__main__":
    main()
