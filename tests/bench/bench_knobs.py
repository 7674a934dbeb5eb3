"""What the tuner gains on the project's own train.py, beside random search: real sessions on a quiet machine.

    python tests/bench/bench_knobs.py [--sessions 3] [--experiments 40] [--budget 30] [--slots 2]   an hour and a half

Both vary the same constants of the incumbent, one or two at a time and equally far, and both are judged by the
project's loop. The tuner draws where earlier trials were good, random search uniformly. Sessions of the two take turns,
so that a machine that drifts drifts for both. The gain is that of `confirm`: baseline against incumbent, three fresh
seeds each, on the test split; 0 where nothing was kept.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
from fakes import ROOT, environment, make_checkout  # noqa: E402

from lab import ledger, report  # noqa: E402
from lab.ledger import Status  # noqa: E402

METHODS = ("tuner", "random")
# agent.py, whose tuner forgets what it was told, or not, and draws otherwise in every session.
AGENT = """\
import sys
import agent
from lab import tuner
drawn, method, number = tuner.variations, sys.argv[1], 1000 * int(sys.argv[2])
tuner.variations = lambda code, told, seed, device: drawn(
    code, told if method == "tuner" else (), seed + number, device)
sys.exit(agent.main(sys.argv[3:]))
"""


def session(method: str, number: int, options: argparse.Namespace, folder: Path) -> tuple[float, float, str]:
    """(confirmed gain, its standard error, a line about the session)."""
    checkout, began = make_checkout(folder / f"{method}{number}", (ROOT / "train.py").read_text()), time.monotonic()
    shared = "--tag", "t", "--slots", str(options.slots)
    limits = "--budget", f"{options.budget:g}", "--experiments", str(options.experiments)
    for words in (("--researcher", "tuner", *limits), ("confirm",)):
        command = [sys.executable, "-c", AGENT, method, str(number), *words, *shared]
        subprocess.run(command, cwd=checkout, env=environment(), stdout=subprocess.DEVNULL, check=True)
    rows = ledger.read(checkout / "results.tsv")
    gain, error, _ = report.confirmed(rows) or (0.0, None, 0)
    statuses = [row.status for row in rows]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in Status)
    minutes = (time.monotonic() - began) / 60
    return gain, error or math.nan, f"{report.headline(rows)}; {counts}; {minutes:.0f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--experiments", type=int, default=40)
    parser.add_argument("--budget", type=float, default=30)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    gains = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.sessions):
            for method in METHODS:
                gain, error, line = session(method, number, options, Path(folder))
                gains[method].append(gain)
                print(f"{method:8s} session {number}: confirmed gain {gain:+.4f} +- {error:.4f}; {line}", flush=True)
    for method, found in gains.items():
        spread = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        print(f"{method:8s} mean of {len(found)} sessions {statistics.fmean(found):+.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()
