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
from fakes import edit, make_checkout, run_agent, start_agent  # noqa: E402
from model_server import ModelServer, Step, answer  # noqa: E402

from lab import ledger  # noqa: E402

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


def seconds(when: str) -> float:
    return datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").timestamp()


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
        checkout = make_checkout(Path(folder) / "checkout")
        command = ("--data", str(corpus), "--budget", f"{options.budget:g}")
        run_agent(checkout, "--experiments", "0", *command)
        with ModelServer([answers(options.share * options.budget)]) as server:
            began = time.time()
            agent = start_agent(checkout, "--experiments", str(options.experiments), *command,
                                ANTHROPIC_BASE_URL=server.url)
            _, errors = agent.communicate()
            wall_s = time.time() - began
            calls = len(server.requests)
        if agent.returncode:
            raise SystemExit(errors)
        rows = ledger.read(checkout / "results.tsv")[1:]
    n = len(rows)
    first_s = seconds(rows[0].when) - rows[0].total_seconds - began  # until the first trial began
    trained = sum(row.train_seconds for row in rows)
    whole = [row for row in rows if row.val_bpb]
    dead = sum(row.total_seconds - row.train_seconds for row in whole) / len(whole)
    between = (wall_s - first_s - sum(row.total_seconds for row in rows)) / n
    kinds = ", ".join(f"{sum(row.status == s for row in rows)} {s}" for s in ("keep", "discard", "crash", "repeat"))
    print(f"{n} trials of {options.budget:g} s ({kinds}), {calls} calls of {options.share * options.budget:g} s")
    print(f"{'budgeted training, of the wall clock after the first trial began':66}{trained / (wall_s - first_s):8.1%}")
    print(f"{'start, scoring and stop of a trial on this machine':66}{dead:8.2f} s")
    print(f"{'between two trials, waits for the model and repairs of crashes included':66}{between:8.2f} s")
    loop = trained / (trained + max(0.0, between) * n)
    print(f"{'share that the loop leaves to the trials':66}{loop:8.1%}")
    real = 1 / (1 / loop + REAL_DEAD_S / REAL_BUDGET_S)  # as if all that passes between trials grew with the budget
    print(f"{f'so with {REAL_BUDGET_S} s of training and {REAL_DEAD_S} s of start, scoring and stop':66}{real:8.1%}")


if __name__ == "__main__":
    main()
