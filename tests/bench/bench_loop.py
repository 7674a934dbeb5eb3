"""The loop's own work: an experiment with a trial that costs nothing, from the first to the twenty-thousandth.

    python tests/bench/bench_loop.py [EXPERIMENTS [FROM [BLOCK]]]

Real agent.py, train.py, tuner, store and git; only runner.run and the report are replaced. One experiment in fifty is
kept. With FROM, the earlier ones are written down at once, all with the train.py of experiment 1. Prints, by blocks (of
1 000): milliseconds an experiment (median, 99th percentile, mean of CPU), memory, open files, and what .git holds.
"""

import contextlib
import hashlib
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


def main(n_experiments: int = 20_000, skipped: int = 0, block: int = 1000) -> None:
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
        arguments = ["--researcher", "tuner", "--tag", "t", "--data", str(corpus), "--experiments"]
        watch(arguments, root, n_experiments, skipped, block)


def skip(root: Path, number: int) -> None:
    """Rows and refs of all experiments up to this one, as copies of the last."""
    results = root / "results.tsv"
    lines = results.read_text().splitlines(keepends=True)
    cells = lines[-1].split("\t")
    commit = subprocess.run(["git", "rev-parse", "refs/autoresearch/t/1"], cwd=root, capture_output=True,
                            text=True).stdout.strip()
    with open(results, "a") as file:
        file.writelines("\t".join([*cells[:5], str(n), *cells[6:]]) for n in range(2, number + 1))
    orders = "".join(f"create refs/autoresearch/t/{n} {commit}\n" for n in range(2, number + 1))
    subprocess.run(["git", "update-ref", "--stdin"], cwd=root, input=orders, text=True, check=True)
    (root / ".git" / "autoresearch" / "t.tsv").unlink()  # the next start takes the rows from results.tsv


def watch(arguments: list[str], root: Path, n_experiments: int, skipped: int, block: int) -> None:
    import agent
    from lab.ledger import Trial

    moments = [(time.perf_counter(), cpu_s())]

    def run(code: str, *, data, seed: int, budget_s: float, folder: Path, split: str, **_: object) -> Trial:
        good = not hashlib.sha256(code.encode()).digest()[0] % 50
        (folder / "trial" / "cache").mkdir(parents=True, exist_ok=True)
        return Trial(2.0 - seed * 1e-7 + (not good), "", seed, split, budget_s, "cpu x2", data.hash[:8], "none",
                     300.0, 310.0, 123.456, 50.1, 12.3, log="step 1 loss 1.0\n" * 20,
                     witnessed=True)

    judged = agent.Loop.judged

    def timed(self: agent.Loop, *words: object) -> object:
        session = judged(self, *words)
        moments.append((time.perf_counter(), cpu_s()))
        if len(moments) > block:
            tell(moments, root)
            del moments[:-1]
        return session

    agent.runner.run, agent.Loop.judged, agent.report.Drawer.draw = run, timed, lambda self: None
    print("rows\tms\tp99\tcpu ms\tMB\tfds\t.git MB\tloose")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a buffer would grow
        if skipped:
            agent.main([*arguments, "1"])
            skip(root, skipped)
        moments[:] = [(time.perf_counter(), cpu_s())]
        agent.main([*arguments, str(n_experiments - skipped)])
    started_at = time.perf_counter()
    agent.main([*arguments, "0"])
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
    main(*map(int, sys.argv[1:]))
