"""How busy is the GPU with budgeted training, when a model takes a fifth of the budget to answer?

    python tests/bench/bench_busy.py [--budget 30] [--experiments 12]

The real agent.py, in a checkout of its own, with a stand-in train.py and a loopback server that answers as slowly as
asked: like 60 s beside 300 s by default. Answers are of all kinds: better, worse, one that needs a repair call, one
that crashes. Prints what a trial costs beside its training, and what passes between two trials; the first does not
shrink with the budget, so the share of a real night is computed from both and printed beside the measured one.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
from conftest import make_text  # noqa: E402
from fakes import edit, make_checkout, start_agent  # noqa: E402
from model_server import ModelServer, Step, answer  # noqa: E402

from lab import ledger  # noqa: E402
from lab.ledger import Row  # noqa: E402

REAL_BUDGET_S, REAL_DEAD_S = 300, 12  # a trial's start, scoring and stop on a GPU: the target


SLIP = ("NO_SUCH_LINE = 1", "NO_SUCH_LINE = 2")
CRASH = ("    torch.manual_seed(SEED)", "    torch.manual_seed(SEED + None)")


def answers(wait_s: float) -> Callable[[dict], Step]:
    """One a request: every fifth first names a line that is not there, one in nine crashes, the rest gain or lose."""
    number = 0

    def next_answer(request: dict) -> Step:
        nonlocal number
        number += 1
        gain = ("BATCH = 8  # rows a step", f"BATCH = 8  # rows a step\nIDEA_{number} = 0")
        loss = ("    torch.nn.init.zeros_(model.weight)", f"    torch.nn.init.normal_(model.weight, std={number})")
        change = SLIP if number % 5 == 0 else CRASH if number % 9 == 0 else gain if number % 2 else loss
        return answer(edit(f"idea {number}", change), wait_s)

    return next_answer


def session(checkout: Path, n: int, *words: str, **environment: str) -> tuple[list[Row], float]:
    """The new rows of `agent.py --experiments n`, and its seconds from the start of its first trial to its end."""
    before = len(ledger.read(checkout / "results.tsv"))
    agent = start_agent(checkout, "--experiments", str(n), *words, **environment)
    _, errors = agent.communicate()
    ended = time.time()
    if agent.returncode:
        raise SystemExit(errors)
    rows = ledger.read(checkout / "results.tsv")[before:]
    first = datetime.strptime(rows[0].when + "+0000", "%Y-%m-%dT%H:%M:%SZ%z").timestamp()
    return rows, ended - (first - rows[0].total_seconds)


def between(rows: list[Row], wall_s: float) -> float:
    """Seconds a trial that belong to none."""
    return (wall_s - sum(row.total_seconds for row in rows)) / len(rows)


def line(text: str, value: str) -> None:
    print(f"{text:76}{value:>8}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=30, help="seconds of training a trial")
    parser.add_argument("--experiments", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.2, help="of the budget that the model takes to answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTORESEARCH_CACHE"] = str(Path(folder) / "cache")
        (corpus := Path(folder) / "corpus").mkdir()
        for i in range(20):
            (corpus / f"{i}.txt").write_text(make_text(i, 20_000))
        alone = make_checkout(Path(folder) / "alone")
        own_s = between(*session(alone, 4, "--data", str(corpus), "--budget", "1"))
        checkout = make_checkout(Path(folder) / "checkout")
        words = ("--data", str(corpus), "--budget", f"{options.budget:g}")
        session(checkout, 0, *words)
        with ModelServer([answers(options.share * options.budget)]) as server:
            rows, wall_s = session(checkout, options.experiments, *words, ANTHROPIC_BASE_URL=server.url)
            calls = len(server.requests)
    trained_s = sum(row.train_seconds for row in rows)
    dead = [row.total_seconds - row.train_seconds for row in rows if row.val_bpb]
    waits_s = max(0.0, between(rows, wall_s) - own_s)
    kinds = ", ".join(f"{sum(row.status == s for row in rows)} {s}" for s in ("keep", "discard", "crash", "repeat"))
    print(f"{len(rows)} trials of {options.budget:g} s ({kinds}), {calls} calls")
    line("budgeted training, of the wall clock from the first trial to the end", f"{trained_s / wall_s:.1%}")
    line("a trial: start, scoring and stop on this machine", f"{sum(dead) / len(dead):.2f} s")
    line("a trial: the loop's own work, without a model and its waits", f"{own_s:.2f} s")
    line("a trial: waits for the model", f"{waits_s:.2f} s")
    scale = REAL_BUDGET_S / options.budget
    real = trained_s / len(rows) * scale / (trained_s / len(rows) * scale + REAL_DEAD_S + own_s + waits_s * scale)
    line(f"so at {REAL_BUDGET_S} s, with {REAL_DEAD_S} s of start, scoring and stop, and waits {scale:g} times as long",
         f"{real:.1%}")


if __name__ == "__main__":
    main()
