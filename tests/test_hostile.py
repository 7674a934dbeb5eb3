"""Every train.py of tests/hostile/, run for real: no false number, no dead referee, no survivor, no missed deadline.

Each tries one thing, which its first line names, and hands over uniform logits if it comes so far: so the only true
number is that of a uniform guess, and whoever reached what it wanted says CHEATED.
"""

import math
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import runner, sandbox
from lab.referee import Limits

ROOT = Path(__file__).resolve().parent.parent
FILES = {path.stem: path for path in sorted((ROOT / "tests" / "hostile").glob("*.py"))}
BUDGET_S = 0.4
LIMITS = Limits(start_s=30.0, first_s=5.0, score_s=10.0, stop_s=2.0)
SLACK_S = 5.0
# What must end as a crash, and what its row says; the others must get the true number.
CRASHES = {
    "answers_in_a_type_of_its_own": "protocol", "asks_and_never_reads": "trained past its budget",
    "asks_for_everything": "protocol",
    "eats_memory": "out of memory|signal SIGKILL|MemoryError|asked for no data within 30 s",
    "forks_without_end": "too many processes", "giant_logits": "too large",
    "hangs_at_the_start": "asked for no data within 30 s", "hangs_before_finish": "though its stream had ended",
    "hangs_in_finish": "no logits within 5 s", "hangs_up": "ended before it was scored",
    "hangs_while_scored": "was not scored in time", "hangs_while_training": "trained past its budget",
    "hoards_tokens": "trained past its budget", "ignores_signals": "trained past its budget",
    "infinite_logits": "not finite", "kills_everybody": "ended before it was scored",
    "leaves_a_daemon_with_the_pipes": "ended before it was scored",
    "nan_logits": "not finite", "one_giant_logit": "not finite", "patches_prepare": "ended before it was scored",
    "scores_itself_early": "protocol", "sends_garbage": "protocol", "sends_half_a_request": "asked for no data",
    "trains_between_two_asks": "keeps state|sees the future", "trains_while_it_is_scored": "no logits within 5 s",
    "wrong_shape": "ValueError: logits of shape",
}
BRIEF = ("answers_without_logits", "hoards_tokens", "kills_its_parent", "leaves_a_daemon_with_the_pipes",
         "reads_environments", "sends_garbage")
LONGEST_S = LIMITS.start_s + 1.02 * BUDGET_S + 1.0 + LIMITS.score_s + BUDGET_S + LIMITS.stop_s + SLACK_S


@pytest.fixture(scope="module")
def port():
    """Somebody who listens, so that a connection would succeed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: [server.accept() for _ in iter(int, 1)], daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def attack(corpus, tmp_path, port, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-hostile-test")
    targets = corpus.split("val")[: corpus.eval_rows["val"], 1:]
    lengths = corpus.token_bytes()[targets]
    uniform = (lengths > 0).sum() * math.log2(corpus.vocab_size) / lengths.sum()

    def attack(name: str) -> None:
        code = FILES[name].read_text(encoding="utf-8")
        for sign, value in (("@data@", corpus.folder), ("@repo@", ROOT), ("@port@", port)):
            code = code.replace(sign, str(value))
        began = time.monotonic()
        trial = runner.run(code, data=corpus, seed=1, budget_s=BUDGET_S, folder=tmp_path / name, limits=LIMITS)
        assert time.monotonic() - began < LONGEST_S + 5, name
        assert "CHEATED" not in trial.reason + trial.log, (name, trial.log)
        assert len(trial.log) < 100_000, name
        if name in CRASHES:
            assert trial.crashed and re.search(CRASHES[name], trial.reason), (name, trial.reason, trial.log[-500:])
        else:
            assert trial.reason == "", (name, trial.reason, trial.log[-500:])
            assert trial.val_bpb == pytest.approx(uniform, rel=1e-6), name
        runner.fresh_folder(tmp_path / name, "")  # whatever it left behind can be cleared away

    return attack


def descendants() -> set[int]:
    return set(sandbox.descendants(os.getpid()))


def attack_all(attack, names) -> None:
    """Two at a time; all failures are told together."""
    failures, before = [], descendants()

    def one(name: str) -> None:
        try:
            attack(name)
        except Exception as error:  # noqa: BLE001
            failures.append(f"{name}: {type(error).__name__}: {error}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, names))
    assert not failures, "\n\n".join(failures)
    assert descendants() <= before and not os.path.exists("/dev/shm/from-a-trial")


needs_scopes = pytest.mark.skipif(sandbox.landlock_version() < 6, reason="Landlock here does not confine signals yet")


@needs_scopes
def test_no_attack_succeeds(attack):
    attack_all(attack, BRIEF)


@needs_scopes
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_attack_of_the_whole_corpus_succeeds(attack):
    assert len(FILES) >= 50 and FILES.keys() >= CRASHES.keys()
    attack_all(attack, [name for name in FILES if name != "eats_memory"])
    attack_all(attack, ["eats_memory"])


def test_weights_left_anywhere_do_not_reach_the_next_trial(corpus, tmp_path):
    leave = """
import os
for path in ("weights", "cache/weights", os.path.expanduser("~/weights"), "/dev/shm/weights"):
    open(path, "w").write("weights")
print("left")
"""
    look = """
import os
for folder in (".", "/dev/shm"):
    for at, _, names in os.walk(folder):
        if any("weights" in name for name in names):
            print("found", at, names)
print("looked")
"""
    for code, says in ((leave, "left\n"), (look, "looked\n")):
        trial = runner.run(code, data=corpus, seed=1, budget_s=BUDGET_S, folder=tmp_path, limits=LIMITS)
        assert trial.log == says
