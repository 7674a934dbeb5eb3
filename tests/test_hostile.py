"""Every train.py of tests/hostile/, run for real: no false number, no dead referee, no survivor, no missed deadline.

The first line of each file says what it must come to; hostile/verdicts.py reads it. A file that reaches what it wanted
says CHEATED. All files count as would-be keeps, so each that scores meets its witness.
"""

import math
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import runner, sandbox
from lab.ledger import Ending
from lab.referee import TrialLimits

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "hostile"))

import verdicts  # noqa: E402

LIMITS = TrialLimits(start_s=30.0, first_s=5.0, score_s=10.0, stop_s=2.0)
SLACK_S = 10.0
BUSY_TRIES = 3
PIECES = 10  # of the whole corpus, each of some minutes
BRIEF = ("caches_what_it_learnt", "hoards_tokens", "kills_its_parent", "looks_ahead_and_remembers",
         "passes_on_by_a_sibling", "pushes_a_little_in_bfloat16", "reads_held_out_source", "sends_garbage",
         "swaps_its_weights_after_the_file")


@pytest.fixture(scope="module")
def port():
    """Somebody who listens, so that a connection would succeed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: [server.accept() for _ in iter(int, 1)], daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def run(corpus, tmp_path, port, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-hostile-test")

    def run(name: str, folder: str, is_baseline: bool = False):
        code = verdicts.code(name, data=corpus.folder, repo=ROOT, port=port)
        budget_s = verdicts.LOADS_BUDGET_S if name in verdicts.LOADS else verdicts.BUDGET_S
        for _ in range(BUSY_TRIES):  # a host may stand still for seconds
            began = time.monotonic()
            trial = runner.run(code, data=corpus, seed=1, budget_s=budget_s, folder=tmp_path / folder, limits=LIMITS,
                               is_baseline=is_baseline)
            assert time.monotonic() - began < runner.longest_s(LIMITS, budget_s) - runner.BACKSTOP_S + SLACK_S, name
            if trial.ending is not Ending.BUSY or name in verdicts.LOADS:
                break
        assert len(trial.log + trial.late_log) < 400_000, name
        return trial

    return run


@pytest.fixture
def attack(run, corpus):
    """What is wrong with a file's trial, "" where nothing is."""
    targets = corpus.split("val")[: corpus.eval_rows["val"], 1:]
    lengths = corpus.token_bytes()[targets]
    uniform = (lengths > 0).sum() * math.log2(corpus.vocab_size) / lengths.sum()
    pairs = run("counts_pairs", "pairs").val_bpb
    assert pairs, "the honest model is not scored"

    def attack(name: str) -> str:
        complaints = []
        for number in range(2 if name in verdicts.TWICE | verdicts.BASELINE_FIRST else 1):
            trial = run(name, name, number == 0 and name in verdicts.BASELINE_FIRST)
            if complaint := verdicts.complaint(name, trial, uniform, pairs):
                complaints.append(f"{name}: {complaint}\n{(trial.log + trial.late_log)[-800:]}")
        return "\n".join(complaints)

    return attack


def attack_all(attack, names) -> None:
    """Two at a time, but those that take memory, disk or processes alone; all failures are told together."""
    before = set(sandbox.descendants(os.getpid()))
    together = [name for name in names if name not in verdicts.ALONE]
    alone = [name for name in names if name in verdicts.ALONE]
    with ThreadPoolExecutor(2) as pool:
        complaints = [*pool.map(attack, together)]
    complaints = [complaint for complaint in [*complaints, *map(attack, alone)] if complaint]
    assert not complaints, "\n\n".join(complaints)
    alive, ended = sandbox.family(os.getpid())  # ended ones are those of a trial that its referee did not see
    assert set(alive) <= before and not ended


def test_no_attack_succeeds(attack):
    attack_all(attack, BRIEF)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("piece", range(PIECES))
@pytest.mark.parametrize("level", ["full", "filter"])
def test_no_attack_of_the_whole_corpus_succeeds(attack, level, piece, monkeypatch):
    if level == "filter":
        monkeypatch.setenv("AUTORESEARCH_SANDBOX", "filter")
    names = sorted(verdicts.FILES)
    assert len(names) >= 200
    attack_all(attack, names[piece::PIECES])
