"""The loop's own work: an experiment with a trial that costs nothing, from the first to the twenty-thousandth.

    python tests/bench/bench_loop.py [EXPERIMENTS]

Real agent.py, tuner, store and git; only runner.run and the report are replaced. One experiment in fifty is kept.
The train.py is the project's. Prints, by blocks of 1 000: milliseconds an experiment (median, 99th percentile, mean of
CPU), memory, open files, and what .git holds.
"""

import contextlib
import hashlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent.parent)]

from conftest import make_text  # noqa: E402
from fakes import ROOT, make_checkout  # noqa: E402

BLOCK = 1000


def main(n_experiments: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTORESEARCH_CACHE"] = f"{folder}/cache"
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for i in range(200):
            (corpus / f"{i:03}.txt").write_text(make_text(i, 800))
        root = make_checkout(Path(folder) / "checkout", (ROOT / "train.py").read_text())
        os.chdir(root)
        sys.path.insert(0, str(root))
        for name in [name for name in sys.modules if name.split(".")[0] in ("lab", "prepare")]:
            del sys.modules[name]  # conftest's: the checkout has its own
        arguments = ["--researcher", "tuner", "--tag", "t", "--data", str(corpus), "--experiments", str(n_experiments)]
        watch(arguments, root)


def watch(arguments: list[str], root: Path) -> None:
    import agent
    from lab.ledger import Trial

    moments = [(time.perf_counter(), cpu_s())]

    def run(code: str, *, data, seed: int, budget_s: float, folder: Path, split: str, **_: object) -> Trial:
        good = not hashlib.sha256(code.encode()).digest()[0] % 50
        (folder / "trial" / "cache").mkdir(parents=True, exist_ok=True)
        return Trial(2.0 - seed * 1e-7 + (not good), "", seed, split, budget_s, "cpu x2", data.hash[:8], "none",
                     300.0, 310.0, 123.456, 50.1, 12.3, log="step 1 loss 1.0\n" * 20)

    record = agent.Loop.record

    def timed(self: agent.Loop, row: object) -> None:
        record(self, row)
        moments.append((time.perf_counter(), cpu_s()))
        if len(moments) % BLOCK == 1:
            tell(moments[-BLOCK - 1 :], root)

    agent.runner.run, agent.Loop.record, agent.Loop.show = run, timed, lambda self: None
    print("rows\tms\tp99\tcpu ms\tMB\tfds\t.git MB\tloose")
    with contextlib.redirect_stdout(io.StringIO()):
        agent.main(arguments)
    started_at = time.perf_counter()
    agent.main([*arguments[:-1], "0"])
    print(f"the next start and end: {time.perf_counter() - started_at:.2f} s")


def cpu_s() -> float:
    """Of this process and of the git commands that have ended: what a busy machine does not change."""
    return sum(os.times()[:4])


def tell(moments: list[tuple[float, float]], root: Path) -> None:
    """One line of the table."""
    spans = sorted(1000 * (b[0] - a[0]) for a, b in zip(moments, moments[1:], strict=False))
    cpu_ms = 1000 * (moments[-1][1] - moments[0][1]) / len(spans)
    status = Path("/proc/self/status").read_text()
    resident_mb = int(status.split("VmRSS:")[1].split()[0]) / 1024
    counted = subprocess.run(["git", "count-objects", "-v"], cwd=root, capture_output=True, text=True).stdout
    held = dict(line.split(": ") for line in counted.splitlines())
    n_rows = (root / "results.tsv").read_bytes().count(b"\n") - 1
    facts = [n_rows, f"{statistics.median(spans):.1f}", f"{spans[int(0.99 * len(spans))]:.1f}", f"{cpu_ms:.1f}",
             f"{resident_mb:.1f}", len(os.listdir("/proc/self/fd")),
             (int(held["size"]) + int(held["size-pack"])) // 1024, held["count"]]
    print(*facts, sep="\t", file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["20000"])[0]))
