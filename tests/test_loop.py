"""The whole way: python agent.py in a real repository, with real trials of a second."""

import argparse
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import model_server
import pytest
from fakes import BETTER, BROKEN, TRAIN, WORSE, edit, environment, git, make_checkout, run_agent, start_agent
from invariants import check
from model_server import ModelServer, answer

from agent import Turn, judge, keep_below, next_step
from lab import edits, ledger, report, runner
from lab.ledger import Ending, Experiment, Proposal, Row, SetupError, Status, Trial
from lab.opening import check_baseline, lacks_baseline, row_warnings
from lab.report import who_proposed
from lab.session import Again, Candidate, New, Session, Stopped, candidate_of, row_of
from lab.store import Store
from lab.timeline import timeline
from lab.turns import Limits, n_ideas, tuner_credit


@pytest.fixture
def checkout(tmp_path, corpus):
    return make_checkout(tmp_path / "checkout")


@pytest.fixture
def data(corpus_path):
    return ("--data", str(corpus_path), "--budget", "0.5")


@pytest.fixture(scope="module")
def evening(tmp_path_factory, corpus, corpus_path):
    """(A checkout with a session t by a model: real trials, at rest; what the agent printed)."""
    checkout = make_checkout(tmp_path_factory.mktemp("evening") / "checkout")
    script = [edit("faster", BETTER), edit("slower", WORSE), edit("broken", BROKEN), "no idea how to mend it"]
    with ModelServer(script) as server:
        done = run_agent(checkout, "--experiments", "3", "--tuner-share", "0", "--researcher", "llm", "--tag", "t",
                         "--data", str(corpus_path), "--budget", "0.5", "--notify",
                         f"(cat; echo $AUTORESEARCH_EVENT) >> {checkout.parent}/told",
                         ANTHROPIC_BASE_URL=server.url, ANTHROPIC_API_KEY="sk-secret-of-the-test")
    assert (done.returncode, done.stderr) == (0, "")
    return checkout, done.stdout


def rows_of(checkout):
    return ledger.read(checkout / "results.tsv")


def test_a_session_keeps_the_better_discards_the_worse_and_logs_the_crash(evening):
    checkout, said = evening
    rows = rows_of(checkout)
    assert [(row.status, row.description) for row in rows] == [
        ("keep", "baseline"), ("keep", "faster"), ("discard", "slower"), ("crash", "broken")]
    assert rows[1].val_bpb < min(rows[0].val_bpb, rows[2].val_bpb) and rows[3].val_bpb is None
    assert "RuntimeError: out of ideas" in rows[3].note
    assert "LEARNING_RATE = 100.0 " in (checkout / "train.py").read_text()
    assert rows[0].source == "baseline" and rows[1].source == "claude-opus-5-5" and rows[1].usd > 0
    everything = said + git(checkout, "log", "-p", "--all") + (checkout / "results.tsv").read_text()
    files = [path for path in (checkout / "runs").rglob("*") if path.is_file()]
    everything += "".join(path.read_text(errors="replace") for path in files)
    assert "sk-secret" not in everything
    assert "merged" in rows[2].note  # drafted against the baseline while "faster" was still running
    check(checkout)


def test_a_command_is_told_of_the_new_best_and_of_the_stop(evening):
    told = (evening[0].parent / "told").read_text().splitlines()
    best, stop = json.loads(told[1]), json.loads(told[3])
    rows = rows_of(evening[0])
    assert best == {"event": "best", "tag": "t", "n_rows": 2, "experiment": 1, "val_bpb": rows[1].val_bpb}
    assert stop == {"event": "stop", "tag": "t", "n_rows": 4, "why": "--experiments 3"}
    assert told[2] == report.headline(rows) and len(told) == 4


def test_its_continuation_and_its_morning(evening, data, agents, tmp_path):
    checkout = Path(shutil.copytree(evening[0], tmp_path / "checkout", symlinks=True))
    before = (checkout / "results.tsv").read_text()
    done = run_agent(checkout, "--experiments", "1", "--researcher", "tuner", "--tag", "t", *data)
    assert (done.returncode, done.stderr) == (0, "")
    rows, text = rows_of(checkout), (checkout / "results.tsv").read_text()
    assert text.startswith(before) and [row.experiment for row in rows] == [0, 1, 2, 3, 4]
    assert rows[4].source == "tuner"
    assert all(row.val_bpb and row.train_seconds and row.tokens_m and row.data for row in rows if row.status != "crash")
    check(checkout)
    for row in rows:
        assert git(checkout, "rev-parse", f"refs/autoresearch/t/{row.experiment}").startswith(row.commit)
    assert git(checkout, "status", "--porcelain") == ""
    assert git(checkout, "show", "HEAD:results.tsv") == text
    done = run_agent(checkout, "report")
    assert (done.returncode, done.stderr) == (0, "") and "experiments:" in done.stdout
    assert (checkout / "progress.png").exists() and (checkout / "report.html").exists()
    assert git(checkout, "status", "--porcelain") == ""
    said = refused(agents, checkout, "--tag", "t", "--researcher", "tuner", *data[:2], "--budget", "2")
    assert "--tag" in said  # numbers of another budget do not compare


def test_a_kill_leaves_no_process_and_of_two_stops_the_first_finishes_the_trial_and_the_second_ends_it(
        checkout, agents, corpus_path):
    command = ("--researcher", "tuner", "--data", str(corpus_path), "--budget", "2")
    process = start_and_wait(checkout, *command)
    time.sleep(1.0)
    process.kill()
    process.communicate(timeout=20)
    until = time.monotonic() + 10
    while (left := trial_processes(checkout)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
    process = start_and_wait(checkout, *command)  # the same command continues
    assert "another agent" in refused(agents, checkout, *command)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert re.search(r"\nstopping after this trial, 0:0\d left; Ctrl-C again ends it now\n", said), said
    assert process.returncode == 0 and len(rows_of(checkout)) == 1
    check(checkout)
    process = start_and_wait(checkout, *command)
    for _ in range(2):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0 and len(rows_of(checkout)) == 1
    check(checkout)


def start_and_wait(checkout, *command, deadline_s=60):
    """An agent whose first trial has begun."""
    runs, began_at = checkout / "runs", time.time()
    process = start_agent(checkout, *command)
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            if any(path.stat().st_mtime > began_at for path in runs.glob("*/trial/train.py")):
                return process
        time.sleep(0.02)
    raise AssertionError("no trial has started")


def refused(agents, checkout, *arguments, **changes):
    before = {path: path.read_bytes() for path in checkout.iterdir() if path.is_file()}
    head = git(checkout, "rev-parse", "HEAD", "--symbolic-full-name", "HEAD")
    code, out = agents.run(checkout, *arguments, **changes)
    said = agents.err.read_text()
    assert code == 2, out
    assert len(said.strip().splitlines()) == 1 or "usage:" in said, said
    assert "Traceback" not in out
    assert {path: path.read_bytes() for path in checkout.iterdir() if path.is_file()} == before
    assert git(checkout, "rev-parse", "HEAD", "--symbolic-full-name", "HEAD") == head
    return said


def test_every_refused_start_is_one_line_and_changes_nothing(root, agents, data, tmp_path):
    assert "not a positive number" in refused(agents, root, "--budget", "0")
    assert "not a positive number" in refused(agents, root, "--budget", "nan")
    assert "--nonsense" in refused(agents, root, "--nonsense")
    with ModelServer(["hello"]) as server:  # which costs money, so it is asked last
        assert "nowhere" in refused(agents, root, "--data", str(tmp_path / "nowhere"), ANTHROPIC_BASE_URL=server.url)
        assert not server.n_proofs
    assert "AUTORESEARCH_SANDBOX=flter is no level" in refused(agents, root, *data, AUTORESEARCH_SANDBOX="flter")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.txt").write_text("too little")
    assert "small" in refused(agents, root, "--data", str(tmp_path / "small"))
    assert "ANTHROPIC_API_KEY" in refused(agents, root, "--researcher", "llm", *data)
    out = refused(agents, root, "--data", "climbmix", AUTORESEARCH_ENDPOINT="http://127.0.0.1:9")
    assert "--data builtin" in out
    with ModelServer(["hello"], key="right") as server:
        out = refused(agents, root, *data, ANTHROPIC_BASE_URL=server.url, ANTHROPIC_API_KEY="sk-wrong-key")
    assert "sk-wrong-key" not in out
    with ModelServer(["hello"], models=None, proof=model_server.status(404)) as server:
        assert "check --model" in refused(agents, root, "--data", "climbmix", ANTHROPIC_BASE_URL=server.url)
    (root / "prepare.py").write_text((root / "prepare.py").read_text() + "\n")
    assert "uncommitted" in refused(agents, root, *data)
    git(root, "checkout", "prepare.py")
    (root / "program.md").write_text(" \n")
    assert "program.md" in refused(agents, root, *data)
    (root / "program.md").unlink()
    assert "program.md" in refused(agents, root, *data)
    git(root, "checkout", "program.md")
    for code, why in (("def (:\n", "does not compile: invalid syntax (train.py, line 1)"),
                      ("x = 1\n" * 40_000, "has more than 200000 characters"),
                      ("import prepare\n", "does not call prepare's stream and finish: a trial pulls batches from "
                       "stream(batch_size, seq_len) and ends with finish(model)")):
        (root / "train.py").write_text(code)
        git(root, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qam", "broken")
        said = refused(agents, root, *data)
        assert said == f"agent.py: train.py cannot be the baseline: it {why}; mend it and commit\n"


def test_a_start_is_refused_under_an_unknown_device_or_where_trials_could_read_the_data(root, agents, data):
    assert "CUDA_VISIBLE_DEVICES" in refused(agents, root, *data, AUTORESEARCH_DEVICE="cuda:1")
    libraries = sysconfig.get_paths()["purelib"]
    assert "AUTORESEARCH_CACHE" in refused(agents, root, *data, AUTORESEARCH_CACHE=f"{libraries}/numpy/autoresearch")


def test_a_session_is_refused_at_once_on_another_device_and_without_its_corpus(begun, agents, tmp_path):
    words = "--tag", "nov23", "--researcher", "tuner"
    said = refused(agents, begun, *words, AUTORESEARCH_DEVICE="mps")
    assert re.search(r"measured on cpu x\d+, trials here have mps x\d+; start another with --tag nov23-2", said)
    if os.cpu_count() > 1:
        assert refused(agents, begun, *words, "--slots", "2").endswith("say --slots 1\n")
    said = refused(agents, begun, *words, AUTORESEARCH_CACHE=str(tmp_path / "another"))
    assert "is not in" in said and "name it with --data" in said


def test_a_relative_path_is_the_users_and_a_session_finds_its_corpus_again(root, corpus_path):
    words = ("--experiments", "0", "--researcher", "tuner", "--budget", "0.5")
    command = [sys.executable, str(root / "agent.py"), *words, "--data", corpus_path.name]
    done = subprocess.run(command, cwd=corpus_path.parent, capture_output=True, text=True, timeout=200,
                          env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    done = run_agent(root, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{corpus_path.name}: data {rows_of(root)[0].data}" in done.stdout and "200 files read" in done.stdout
    assert "sandbox: " in done.stdout


def test_a_baseline_that_sees_its_data_too_often_gets_a_warning(corpus):
    often = Row("c", 1.0, status=Status.KEEP, tokens_m=3 * corpus.train_tokens / 1e6)
    assert "3.0 times" in row_warnings(often, corpus)[0] and "more text" in row_warnings(often, corpus)[0]
    assert row_warnings(replace(often, tokens_m=1.9 * corpus.train_tokens / 1e6), corpus) == []
    assert row_warnings(replace(often, experiment=1), corpus) == []


def trial_processes(checkout) -> str:
    found = subprocess.run(["pgrep", "-f", "lab.referee|train.py"], capture_output=True, text=True).stdout.split()
    return " ".join(pid for pid in found if str(checkout) in cwd_of(pid))


def cwd_of(pid: str) -> str:
    import os

    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_python_train_py_by_hand_ends_with_a_summary(checkout, corpus_path, tmp_path):
    done = subprocess.run([sys.executable, "train.py"], cwd=checkout, capture_output=True, text=True, timeout=120,
                          env=environment(AUTORESEARCH_DATA=str(corpus_path), AUTORESEARCH_BUDGET="0.5",
                                          AUTORESEARCH_CACHE=str(tmp_path / "cache")))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("training the tokenizer")  # no silence while a corpus is prepared
    start = next(i for i, line in enumerate(lines) if line.startswith("val_bpb:"))
    assert all(": " in line for line in lines[start:]) and 0 < float(lines[start].split(": ")[1]) < 20


@pytest.mark.parametrize(("name", "value"), [
    ("BUDGET", "5m"), ("BUDGET", "0"), ("BUDGET", "nan"), ("SEED", "x"), ("SEED", "-1"), ("SANDBOX", "flter"),
    ("DATA", "/nowhere/at/all")])
def test_a_wrong_variable_of_train_py_by_hand_is_one_line(monkeypatch, capsys, name, value):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv(f"AUTORESEARCH_{name}", value)
    assert runner.by_hand(Path("train.py")) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: ") and said.count("\n") == 1 and value in said


def test_the_help_of_train_py_by_hand_names_its_settings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runner.by_hand(Path("train.py"))
    assert "AUTORESEARCH_BUDGET" in capsys.readouterr().out


# Limits, with the stand-in's trials -----------------------------------------------------------------------------------


@pytest.fixture
def begun(cheap_session, tmp_path):
    """A session at rest whose trials cost a tenth of a second."""
    return Path(shutil.copytree(cheap_session, tmp_path / "begun", symlinks=True))


@pytest.fixture
def words(corpus_path):
    return ("--tag", "nov23", "--data", str(corpus_path), "--researcher")


def test_hours_end_the_session_by_themselves_and_the_next_start_has_its_own(begun, agents, words):
    before = len(rows_of(begun))
    for _ in range(2):
        code, out = agents.run(begun, *words, "tuner", "--hours", "0.0005")
        assert (code, "stopped: --hours 0.0005" in out) == (0, True), out
    assert len(rows_of(begun)) > before
    check(begun)


def test_confirm_measures_fresh_seeds_on_the_test_split_alone(begun, agents, words):
    before = rows_of(begun)
    code, out = agents.run(begun, "confirm", *words[:-1])
    assert code == 0 and "confirmed" in out.lower(), out
    new = rows_of(begun)[len(before):]
    kept = [row.experiment for row in before if row.status == "keep"]
    assert [(row.status, row.split) for row in new] == [("repeat", "test")] * len(new)
    assert sorted(row.experiment for row in new) == sorted([0, kept[-1]] * 3)
    assert len({(row.experiment, row.seed) for row in rows_of(begun)}) == len(rows_of(begun))
    check(begun)


def test_what_lies_below_the_incumbent_after_its_repeat_is_tried_again_and_the_branch_returns(begun, agents, words):
    best = ledger.incumbent(ledger.experiments(rows_of(begun)))
    store = Store.open(begun, None, "nov23")
    store.append(replace(best.own, status=Status.REPEAT, val_bpb=9.0, seed=best.own.seed + 1))
    store.release()
    before = rows_of(begun)
    code, out = agents.run(begun, *words, "tuner", "--experiments", "1")
    assert code == 0, out
    row = rows_of(begun)[len(before)]
    assert row.status == "keep" and row.experiment in {known.experiment for known in before} - {best.number}, out
    assert row.note == f"lower than #{best.number} in the mean of its trials"
    check(begun)


def test_longer_trains_both_ends_under_its_own_budget(begun, agents, words):
    before = rows_of(begun)
    kept = [row.experiment for row in before if row.status == "keep"]
    for n in (1, 2):
        code, out = agents.run(begun, "confirm", "--longer", "3", *words[:-1])
        assert code == 0 and f"At 3 times the budget ({n} seed" in out, out
    own_s, new = before[0].budget, rows_of(begun)[len(before):]
    assert [(row.experiment, row.status, row.split, row.budget) for row in new] == [
        (number, "repeat", "test", 3 * own_s) for number in (0, kept[-1], 0, kept[-1])]
    check(begun)
    code, out = agents.run(begun, *words, "tuner", "--experiments", "1")
    assert code == 0 and rows_of(begun)[-1].budget == own_s, out


def idea(name: str, line: str = "") -> str:
    """An answer that adds a line to main() of the stand-in's train.py, which a restart of the idea finds again."""
    return edit(name, ("def main():", f"def main():\n    {line or repr(name)}"))


def test_a_crash_is_mended_in_the_background_and_tried_as_an_experiment_of_its_own(begun, agents, words):
    crash = edit("broken", ("time.sleep(SLEEP_S)", "time.sleep(SLEEP_S)\nraise RuntimeError('out of ideas')"))

    def answer(request):
        if "Correct the cause and keep the idea." in str(request["messages"][-1]):
            assert "RuntimeError: out of ideas" in str(request)
            return edit("broken", ("raise RuntimeError('out of ideas')", "mended = True"))
        return idea("slower", "slower = 1") if "broken" in str(request) else crash

    before = len(rows_of(begun))
    with ModelServer([answer]) as server:
        code, out = agents.run(begun, *words, "llm", "--experiments", "3", server=server.url)
    rows = rows_of(begun)[before:]
    assert [(row.status == "crash", row.description) for row in rows] == [
        (True, "broken"), (False, "slower"), (False, "broken")], out
    assert rows[2].note.startswith("mended after: RuntimeError: out of ideas")
    assert (code, len(server.requests)) == (0, 3)
    check(begun)


def test_new_directions_throw_the_draft_away_and_stand_in_the_first_row_whose_idea_had_read_them(begun, agents, words):
    program, before = begun / "program.md", len(rows_of(begun))
    steered = program.read_text().replace("## Directions", "## Directions\n\nLook at the optimizer.")

    def answer(request):
        if "Look at the optimizer." not in str(request):
            program.write_text(steered)
            return idea("unsteered", "a = 1")
        return idea("omega", "b = 2") if "alpha" in str(request) else idea("alpha", "c = 3")

    program.write_text(program.read_text() + "\n")
    with ModelServer([idea("zero", "d = 4"), answer]) as server:
        code, out = agents.run(begun, *words, "llm", "--experiments", "3", server=server.url)
    assert code == 0, out
    rows = rows_of(begun)[before:]
    assert [row.description for row in rows] == ["zero", "alpha", "omega"]
    assert ["program.md changed" in row.note for row in rows] == [True, True, False]  # also before the start
    assert "directions in program.md changed" in out and git(begun, "show", "HEAD:program.md") == steered
    billed = sum(json.loads(line)["usd"] for line in (begun / "runs" / "nov23" / "calls.jsonl").open())
    assert billed == pytest.approx(sum(row.usd for row in rows), abs=1e-4)  # the lost draft's too


def test_an_edit_elsewhere_in_program_md_keeps_the_draft_and_is_named_once(begun, agents, words):
    before = len(rows_of(begun))

    def and_then_steer(request):
        if "Another goal." not in (text := (begun / "program.md").read_text()):
            (begun / "program.md").write_text(text + "Another goal.\n")
        return idea("omega", "a = 1") if "alpha" in str(request) else idea("alpha", "b = 2")

    with ModelServer([and_then_steer]) as server:
        code, out = agents.run(begun, *words, "llm", "--experiments", "2", server=server.url)
    assert code == 0, out
    assert [(row.description, "program.md changed" in row.note) for row in rows_of(begun)[before:]] == [
        ("alpha", False), ("omega", True)]


def test_dollars_end_the_session_before_they_are_overspent(begun, agents, words):
    numbers = itertools.count()

    def dear(request):
        return answer(idea("good", f"a = {next(numbers)}"), thinking=min(4_000, request["max_tokens"] // 2))

    with ModelServer([dear]) as server:
        code, out = agents.run(begun, *words, "llm", "--max-usd", "0.5", server=server.url)
        asked = len(server.requests)
        again, last = agents.run(begun, *words, "llm", "--max-usd", "0.5", server=server.url)
        assert len(server.requests) == asked
    assert (code, again, "stopped: " in out, "--max-usd" in out) == (0, 0, True, True), out
    assert "\n0 experiments; $0.00\n" in last  # of this run; the session has spent more
    billed = sum(json.loads(line)["usd"] for line in (begun / "runs" / "nov23" / "calls.jsonl").open())
    assert 0 < billed <= 0.5 and sum(row.usd for row in rows_of(begun)) <= billed + 1e-3
    check(begun)


def night_of(hours=None, word="research", **more):
    options = {"hours": hours, "word": word, "experiments": None, "max_usd": None, "budget": 300.0}
    return argparse.Namespace(**options | more)


def slow_session(total_s):
    rows = tuple(Row(f"c{n}", 1.0, status=Status("keep" if n == 0 else "discard"), experiment=n, total_seconds=total_s,
                     budget=300.0) for n in range(3))
    return Session("t", Path("runs"), 300.0, {}, rows, tuple(ledger.experiments(rows)))


def test_hours_keep_time_for_confirm_and_start_nothing_that_would_not_end():
    now, limits = slow_session(360.0), Limits(night_of(hours=8), slow_session(360.0))
    assert limits.confirm_s(now) == 6 * 360 and limits.n_more(now, ())
    limits.started_at -= 8 * 3600 - 6 * 360 - 700  # 700 s are left: one trial, and none after it
    limits.allow(now, ())
    assert limits.n_more(now, ()) == 0
    limits.started_at -= 400
    with pytest.raises(Stopped, match="--hours 8"):
        limits.allow(now, ())
    assert "too soon to confirm" in str(Limits(night_of(hours=0.5), now)) and "after 8 hours, at" in str(limits)
    assert Limits(night_of(hours=0.5), now).confirm_s(now) == 0


def test_experiments_count_what_is_in_flight_but_no_repeat():
    now = slow_session(1.0)
    limits = Limits(night_of(experiments=1), now)
    assert limits.allow(now, (candidate(0, is_repeat=True),))
    assert not limits.allow(now, (candidate(3),)), "it may have to run again"
    more = (*now.rows, Row("c3", 1.0, status=Status.BUSY, experiment=3, budget=300.0))
    waits = replace(now, rows=more, history=tuple(ledger.experiments(more)))
    assert limits.allow(waits, (candidate(4),)) and limits.allow(waits, ())
    judged = (*now.rows, Row("c3", 1.0, status=Status.DISCARD, experiment=3, budget=300.0))
    with pytest.raises(Stopped, match="--experiments 1"):
        limits.allow(replace(now, rows=judged, history=tuple(ledger.experiments(judged))), ())
    four = Limits(night_of(experiments=4), now)
    assert four.n_more(now, (candidate(3),)) == 3 and four.n_more(now, tuple(map(candidate, range(3, 9)))) == 0
    assert str(Limits(night_of(), now)) == "stops when you press Ctrl-C"


# Pure functions -------------------------------------------------------------------------------------------------------


def experiment(number, status, *values, commit=None, source="", statuses=()):
    commit = commit or f"c{number}"
    statuses = (status, *statuses, *["repeat"] * len(values))
    return Experiment(number, tuple(Row(commit, value, status=Status(statuses[i]), experiment=number, source=source,
                                        budget=300.0) for i, value in enumerate(values)))


def session(*history, code=""):
    rows = tuple(row for e in history for row in e.rows)
    return Session("t", Path("runs"), 300.0, {}, rows, tuple(ledger.experiments(rows)), code)


def trial(val_bpb, ending=Ending.SCORED, witnessed=True):
    reason = "" if val_bpb else "boom"
    return Trial(val_bpb, reason, 1, "val", 300, "cpu", "abc", "none", ending=ending, witnessed=witnessed)


def candidate(number=9, code="", source="llm", **more):
    return Candidate(number, "c", 1, New(Proposal("an idea", code, source), more.pop("split", "val")), **more)


def verdict(now, ended, code=""):
    return judge(now, candidate(code=code), ended)[0]


def test_lower_is_kept_and_nothing_else():
    now = session(experiment(0, "keep", 1.0, 1.2))
    assert verdict(now, trial(1.09)) is Status.KEEP
    assert verdict(now, trial(1.1)) is Status.DISCARD
    assert verdict(now, trial(None)) is Status.CRASH
    assert verdict(session(), trial(9.0)) is Status.KEEP


def test_what_no_witness_has_seen_is_never_kept():
    now = session(experiment(0, "keep", 1.0))
    assert judge(now, candidate(), trial(0.5, witnessed=False)) == (Status.DISCARD, "not kept: no witness has seen it")
    assert verdict(session(), trial(9.0, witnessed=False)) is not Status.KEEP


def test_what_is_taken_out_on_the_test_split_is_never_kept():
    now = session(experiment(0, "keep", 1.0))
    assert judge(now, candidate(split="test"), trial(0.5))[0] is Status.DISCARD


LONG = "'about'\na = 1\nb = 2\nc = 3\n"
SHORT = "a = 1\nb = 2\n"


def test_a_shorter_file_within_the_noise_is_kept_without_creep():
    history = experiment(0, "keep", 1.00, 1.02), experiment(1, "keep", 0.99)
    now = session(*history, code=LONG)
    assert verdict(now, trial(0.995), SHORT) is Status.KEEP
    assert verdict(now, trial(0.995), LONG) is Status.DISCARD
    short, long = (New(Proposal("", code, "")) for code in (SHORT, LONG))
    assert keep_below(now, short)[0] == 0.99 + ledger.sigma(history) and keep_below(now, long) == (0.99, "")
    assert keep_below(now, replace(short, split="test")) == (-math.inf, "")
    # experiment 2 was itself a simplification: the bound stays where it was
    assert verdict(session(*history, experiment(2, "keep", 1.00), code=LONG), trial(1.009), SHORT) is Status.DISCARD


def test_a_docstring_or_joined_lines_save_nothing():
    for code in (LONG, LONG.replace("'about'\n", ""), LONG.replace("\nb", "; b"), LONG + "# a word\n"):
        assert edits.n_statements(code) == 3
    assert edits.n_statements(SHORT) == 2


def test_the_incumbent_is_measured_again_after_eight_misses():
    history = [experiment(0, "keep", 1.0)] + [experiment(n, "discard", 2.0) for n in range(1, 8)]
    assert next_step(session(*history), (), 1.0) is Turn.TUNER
    history.append(experiment(8, "crash", None))
    assert next_step(session(*history), (), 1.0) == Again(0)
    assert next_step(session(*history), (candidate(0, is_repeat=True),), 1.0) is Turn.TUNER
    for value in (1.1, None):  # one that crashes on other seeds is not measured for ever
        history[0] = experiment(0, "keep", 1.0, value)
        assert next_step(session(*history), (), 1.0) is Turn.TUNER


def test_what_lies_below_an_incumbent_that_its_repeats_raised_is_measured_again_before_anything_else():
    history = [experiment(0, "keep", 1.0), experiment(1, "keep", 0.90), experiment(2, "discard", 0.94),
               experiment(3, "discard", 0.92), experiment(4, "crash", None)]
    assert next_step(session(*history), (), 0.0) is Turn.MODEL
    history[1] = experiment(1, "keep", 0.90, 1.0)
    now, repeat = session(*history), candidate(3, is_repeat=True)
    assert next_step(now, (), 0.0) == Again(3)
    assert next_step(now, (repeat,), 0.0) is Turn.MODEL
    assert judge(now, repeat, trial(0.94))[0] is Status.KEEP
    assert judge(now, repeat, trial(0.97))[0] is Status.REPEAT, "no witness has seen its 0.92"
    assert judge(now, repeat, trial(None))[0] is Status.REPEAT
    assert judge(now, repeat, trial(0.5, witnessed=False))[0] is Status.REPEAT
    assert judge(now, candidate(1, is_repeat=True), trial(0.5))[0] is Status.REPEAT, "it is the incumbent"
    history[2:4] = experiment(2, "discard", 0.94, 0.99), experiment(3, "discard", 0.92, None)
    assert next_step(session(*history), (), 0.0) is Turn.MODEL, "each is asked once for a trial of the incumbent"


def test_the_number_of_a_discard_which_no_witness_has_seen_counts_in_no_estimate_of_an_incumbent():
    """A file could cheat just so much that it is no keep, and be honest when its turn comes."""
    now = session(experiment(0, "keep", 0.90, 1.0), experiment(1, "discard", 0.91))
    assert now.history[1].val_bpb == 0.91 and next_step(now, (), 0.0) == Again(1)
    row = Row("c1", 0.94, status=Status.KEEP, experiment=1, seed=101, budget=300.0)
    now = now.after(row, candidate(1, "rival", is_repeat=True))
    assert (now.incumbent.number, now.incumbent.values("val"), timeline(now.rows)[-1].after) == (1, [0.94], 0.94)


def test_an_earlier_keep_that_stays_lower_is_the_incumbent_again():
    now = session(experiment(0, "keep", 1.0), experiment(1, "keep", 0.9, 1.3), experiment(2, "discard", 2.0))
    assert next_step(now, (), 0.0) == Again(0)
    verdict, note = judge(now, candidate(0, is_repeat=True), trial(1.1))
    assert (verdict, note) == (Status.KEEP, "lower than #1 in the mean of its trials")
    row = Row("c0", 1.1, status=verdict, experiment=0, seed=1, budget=now.rows[0].budget)
    now = now.after(row, candidate(0, "baseline", is_repeat=True))
    assert (now.incumbent.number, now.incumbent.val_bpb, now.code) == (0, 1.05, "baseline")
    assert now.history == tuple(ledger.experiments(now.rows)) and now.history[0].own.seed == 0
    last = timeline(now.rows)[-1]
    assert (last.against, last.before, last.after, last.n_trials) == (1, 1.1, 1.05, 2)
    assert ledger.misses(now.history) == 0
    assert next_step(now, (), 0.0) is Turn.MODEL


def test_a_trial_without_its_machine_runs_again_before_anything_else_and_counts_nowhere():
    rows = experiment(0, "keep", 1.0), experiment(1, "busy", 0.5)
    now = session(*rows)
    assert next_step(now, (), 0.3) == Again(1) and now.n_busy(1) == 1
    assert next_step(now, (candidate(1),), 0.3) is Turn.MODEL  # it is running again
    assert now.incumbent.number == 0 and ledger.misses(now.history) == 0 and n_ideas(now) == 0
    again = session(rows[0], experiment(1, "busy", 0.5, 0.6, 0.9, statuses=("busy", "keep")))
    assert again.n_busy(1) == 0 and again.incumbent.val_bpb == 0.9 and next_step(again, (), 0.3) is Turn.MODEL
    repeat = session(experiment(0, "keep", 1.0, 3.0, statuses=("busy",)))
    assert next_step(repeat, (), 0.3) == Again(0) and repeat.incumbent.val_bpb == 1.0


def test_a_long_reason_does_not_cut_off_where_a_trial_ran():
    ended = replace(trial(None), reason="x" * 900, slot="a-host.example GPU 3")
    row = ledger.parse_row(ledger.format_row(row_of(candidate(), ended, Status.CRASH, "")))
    assert row.slot == "a-host.example GPU 3" and row.note.startswith("xxx")
    assert row_of(candidate(), replace(ended, slot=""), Status.CRASH, "").slot == ""


@pytest.mark.parametrize("reason", ["boom;\tprogram.md changed", "boom; on strike", "on strike"])
def test_what_a_trial_says_of_its_end_passes_for_no_other_part_of_a_note(reason):
    ended = replace(trial(None), reason=reason)
    row = ledger.parse_row(ledger.format_row(row_of(candidate(), ended, Status.CRASH, "")))
    assert (row.slot, row.is_steered) == ("", False) and row.note.endswith(("strike", "changed"))


def test_a_busy_trial_runs_again_with_its_own_seed():
    """A file that makes the machine busy where it has bad luck gets the same luck again."""
    store = argparse.Namespace(code=lambda number: "x = 1", code_of=lambda commit: "x = 0")
    now = session(experiment(0, "keep", 1.0), experiment(1, "busy", 0.5))
    assert candidate_of(now, (), Again(1), store).seed == 100
    twice = session(experiment(0, "keep", 1.0), experiment(1, "busy", 0.5, 0.6, statuses=("busy",)))
    assert candidate_of(twice, (), Again(1), store).seed == 100
    repeated = session(experiment(0, "keep", 1.0, 3.0, statuses=("busy",)))
    assert candidate_of(repeated, (), Again(0), store).seed == 1
    assert candidate_of(repeated, (candidate(0, is_repeat=True),), Again(0), store).seed == 2
    first, second = experiment(0, "keep", 1.0, 1.1).rows
    killed = session(Experiment(0, (first, replace(second, seed=2))))
    assert candidate_of(killed, (), Again(0), store).seed == 1, "the trial with seed 1 was killed"


def test_what_a_clone_has_not_brought_along_is_not_measured_again():
    history = experiment(0, "keep", 1.0, 1.2), experiment(1, "discard", 1.05), experiment(2, "busy", 2.0)
    assert next_step(session(*history[:2]), (), 0.0) == Again(1) and next_step(session(*history), (), 0.0) == Again(2)
    assert next_step(replace(session(*history), lost=frozenset({1, 2})), (), 0.0) is Turn.MODEL


def test_a_turn_in_flight_counts_once_and_a_repeat_not_at_all():
    first, *others = (experiment(0, "keep", 1.0), experiment(2, "discard", 2.0), experiment(3, "discard", 2.0))
    again = session(first, experiment(1, "busy", 2.0, source="tuner"), *others)
    assert next_step(again, (candidate(1, source="tuner"),), 0.5) is Turn.TUNER
    now = session(first, experiment(1, "discard", 2.0, source="tuner"), others[0])
    assert next_step(now, (candidate(0, source="baseline", is_repeat=True),), 0.5) is Turn.MODEL


def test_a_session_whose_baseline_crashed_is_not_continued():
    with pytest.raises(SetupError, match="--tag t-2"):
        check_baseline("research", experiment(0, "crash", None).rows, "t")
    with pytest.raises(SetupError, match="nothing to confirm"):
        check_baseline("confirm", experiment(0, "busy", 1.0).rows, "t")
    check_baseline("research", experiment(0, "busy", 1.0).rows, "t")


def test_what_the_baseline_measured_is_missed_at_any_moment_but_not_for_ever(tmp_path):
    now = replace(session(experiment(0, "keep", 1.0)), runs=tmp_path)
    assert lacks_baseline(now) and not lacks_baseline(replace(now, budget_s=900.0))
    in_vain = replace(session(experiment(0, "keep", 1.0, None)), runs=tmp_path)
    busy = replace(session(experiment(0, "keep", 1.0, 1.0, statuses=("busy",))), runs=tmp_path)
    assert not lacks_baseline(in_vain) and lacks_baseline(busy)


def test_nothing_starts_beside_the_baseline():
    assert next_step(session(), (), 0.3) is Turn.BASELINE
    assert next_step(session(), (candidate(0),), 0.3) is Turn.WAIT


def test_the_session_after_a_row_is_the_one_that_a_restart_reads():
    now = session(experiment(0, "keep", 1.0))
    steps = [(1, "busy", 0.9, False), (1, "keep", 0.8, False), (0, "repeat", 1.1, True), (2, "crash", None, False)]
    for number, status, value, is_repeat in steps:
        row = Row(f"c{number}", value, status=Status(status), experiment=number, budget=300.0)
        now = now.after(row, candidate(number, code=f"code {number}", is_repeat=is_repeat))
        assert now.history == tuple(ledger.experiments(now.rows))
    assert now.code == "code 1" and len(now.rows) == 5


def test_the_tuner_takes_its_share_of_the_turns():
    history, turns = [experiment(0, "keep", 1.0)], []
    for number in range(1, 101):
        turns.append(next_step(session(*history), (), 0.3))
        source = "tuner" if turns[-1] is Turn.TUNER else "llm"
        history.append(experiment(number, "keep", 1.0 - number / 1000, source=source))
    assert turns.count(Turn.TUNER) in (29, 30) and len(set(turns)) == 2


def test_beside_many_slots_confirm_takes_less_of_the_night():
    now = replace(slow_session(360.0), n_slots=4)
    assert Limits(night_of(hours=8), now).confirm_s(now) == 2 * 360


def test_trials_in_flight_are_turns_too():
    now, in_flight, turns = session(experiment(0, "keep", 1.0)), (), []
    for number in range(1, 11):
        turns.append(next_step(now, in_flight, 0.5))
        in_flight += (candidate(number, source="tuner" if turns[-1] is Turn.TUNER else "llm"),)
    assert turns.count(Turn.TUNER) == 5


def test_the_tuner_gives_back_the_turns_it_took_ahead_but_no_more_than_one():
    sources = ["tuner"] * 49  # the API was out
    assert tuner_credit(sources, 0.3) < 0
    turns = []
    for _ in range(8):
        turns.append("tuner" if tuner_credit(sources, 0.3) >= 1 else "llm")
        sources.append(turns[-1])
    assert turns.index("tuner") in range(3, 8)
    assert tuner_credit(sources + ["llm"] * 41, 0.3) <= 2.3


def test_the_last_line_says_who_proposed_what():
    def row(number, source, note="", status="discard"):
        return Row("c", 1.0, status=Status(status), experiment=number, source=source, note=note)

    rows = [row(0, "baseline", status="keep"), row(1, "opus", "repaired once"), row(2, "tuner"), row(3, "opus"),
            row(3, "opus", status="repeat"), row(4, "opus", status="busy")]
    assert who_proposed(rows, 0, 1, 0.4149) == (
        "3 experiments: opus 2 (1 repaired), tuner 1; 1 answer not usable; $0.41")
    assert who_proposed(rows, 3, 0, 0.0) == "1 experiment: opus 1; $0.00", "of this run"
    assert who_proposed(rows[:1], 0, 0, 0.0) == "0 experiments; $0.00"


def test_the_stand_in_is_what_the_edits_refer_to():
    assert all(TRAIN.count(change[0]) == 1 for change in (BETTER, WORSE, BROKEN))
