"""The whole way: python agent.py in a real repository, with real trials of a second."""

import signal
import subprocess
import sys
import time

import pytest
from fakes import BETTER, BROKEN, TRAIN, WORSE, edit, environment, git, make_checkout, run_agent, start_agent
from invariants import check
from model_server import ModelServer

from agent import judge, next_seed, next_step, tuner_credit
from lab import ledger
from lab.ledger import Experiment, Row, Trial


@pytest.fixture
def checkout(tmp_path, corpus):
    return make_checkout(tmp_path / "checkout")


@pytest.fixture
def data(corpus_path):
    return ("--data", str(corpus_path), "--budget", "0.5")


def rows_of(checkout):
    return ledger.read(checkout / "results.tsv")


def test_tuner_session_leaves_rows_refs_and_a_clean_tree(checkout, data):
    done = run_agent(checkout, "--experiments", "2", "--researcher", "tuner", "--tag", "t", *data)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(checkout)
    assert [row.experiment for row in rows] == [0, 1, 2]
    assert rows[0].status == "keep" and rows[0].source == "baseline" and rows[1].source == "tuner"
    assert all(row.val_bpb and row.train_seconds and row.tokens_m and row.data for row in rows)
    check(checkout)
    for row in rows:
        assert git(checkout, "rev-parse", f"refs/autoresearch/t/{row.experiment}").startswith(row.commit)
    assert git(checkout, "status", "--porcelain") == ""
    assert git(checkout, "show", "HEAD:results.tsv") == (checkout / "results.tsv").read_text()


def test_same_command_continues_where_it_stopped(checkout, data):
    command = ("--experiments", "1", "--researcher", "tuner", *data)
    run_agent(checkout, *command)
    before = (checkout / "results.tsv").read_text()
    assert run_agent(checkout, *command).returncode == 0
    after = (checkout / "results.tsv").read_text()
    assert after.startswith(before) and [row.experiment for row in rows_of(checkout)] == [0, 1, 2]
    check(checkout)


def test_model_session_keeps_the_better_discards_the_worse_and_logs_the_crash(checkout, data):
    script = [edit("faster", BETTER), edit("slower", WORSE), edit("broken", BROKEN), "no idea how to mend it"]
    with ModelServer(script) as server:
        done = run_agent(checkout, "--experiments", "3", "--tuner-share", "0", "--researcher", "llm", *data,
                         ANTHROPIC_BASE_URL=server.url, ANTHROPIC_API_KEY="sk-secret-of-the-test")
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(checkout)
    assert [(row.status, row.description) for row in rows] == [
        ("keep", "baseline"), ("keep", "faster"), ("discard", "slower"), ("crash", "broken")]
    assert rows[1].val_bpb < min(rows[0].val_bpb, rows[2].val_bpb) and rows[3].val_bpb is None
    assert "RuntimeError: out of ideas" in rows[3].note
    assert "LEARNING_RATE = 100.0 " in (checkout / "train.py").read_text()
    assert rows[1].source == "claude-opus-5-5" and rows[1].usd > 0
    everything = done.stdout + git(checkout, "log", "-p", "--all") + (checkout / "results.tsv").read_text()
    everything += "".join(p.read_text() for p in (checkout / "runs").rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert "sk-secret" not in everything
    assert "re-applied" in rows[2].note  # drafted against the baseline while "faster" was still running
    check(checkout)


def test_a_crash_is_mended_in_the_background_and_tried_as_an_experiment_of_its_own(checkout, data):
    def answer(request):
        if "crashed within its first minute" in str(request["messages"][-1]):
            assert "RuntimeError: out of ideas" in str(request)
            return edit("broken", (BROKEN[1], BROKEN[0] + "\n    torch.manual_seed(SEED)"))
        return edit("slower", WORSE) if "broken" in str(request) else edit("broken", BROKEN)

    with ModelServer([answer]) as server:
        done = run_agent(checkout, "--experiments", "3", "--tuner-share", "0", *data, ANTHROPIC_BASE_URL=server.url)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(checkout)[1:]
    assert [(row.status == "crash", row.description) for row in rows] == [
        (True, "broken"), (False, "slower"), (False, "broken")]
    assert rows[2].note.startswith("mended after: RuntimeError: out of ideas")
    assert len(server.requests) == 3
    check(checkout)


def test_an_edit_of_program_md_reaches_the_next_prompt_and_the_row(checkout, data):
    def and_then_steer(request):
        (checkout / "program.md").write_text("Look at the optimizer.\n")
        return edit("faster", BETTER)

    with ModelServer([and_then_steer, edit("slower", WORSE)]) as server:
        done = run_agent(checkout, "--experiments", "2", "--tuner-share", "0", *data, ANTHROPIC_BASE_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert "Look at the optimizer." in str(server.requests[-1])
    assert any("program.md changed" in row.note for row in rows_of(checkout))
    assert git(checkout, "show", "HEAD:program.md") == "Look at the optimizer.\n"


def test_report_and_confirm_are_the_other_two_words(checkout, data):
    run_agent(checkout, "--experiments", "0", "--researcher", "tuner", *data)
    done = run_agent(checkout, "confirm", *data)
    assert (done.returncode, done.stderr) == (0, "")
    tests = [row for row in rows_of(checkout) if row.split == "test"]
    assert tests and all(row.status == "repeat" for row in tests)
    assert len({(row.experiment, row.seed) for row in rows_of(checkout)}) == len(rows_of(checkout))
    done = run_agent(checkout, "report")
    assert (done.returncode, done.stderr) == (0, "") and "the baseline stands" in done.stdout
    assert (checkout / "progress.png").exists() and (checkout / "report.html").exists()
    assert git(checkout, "status", "--porcelain") == ""


def test_first_stop_finishes_the_trial_and_second_ends_it(checkout, corpus_path):
    process = start_agent(checkout, "--researcher", "tuner", "--data", str(corpus_path), "--budget", "3")
    wait_for(checkout, "cache")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(rows_of(checkout)) == 1
    process = start_agent(checkout, "--researcher", "tuner", "--data", str(corpus_path))
    wait_for(checkout, "trial")
    for _ in range(2):
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0 and len(rows_of(checkout)) == 1
    check(checkout)


def wait_for(checkout, what, deadline_s=60):
    """Until a trial of the session has begun."""
    until = time.monotonic() + deadline_s
    while not list((checkout / "runs").glob("*/trial/train.py")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)


def refused(checkout, *arguments, **changes):
    before = {path: path.read_bytes() for path in checkout.iterdir() if path.is_file()}
    head = git(checkout, "rev-parse", "HEAD", "--symbolic-full-name", "HEAD")
    done = run_agent(checkout, *arguments, **changes)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1 or "usage:" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in checkout.iterdir() if path.is_file()} == before
    assert git(checkout, "rev-parse", "HEAD", "--symbolic-full-name", "HEAD") == head
    return done.stderr


def test_every_refused_start_is_one_line_and_changes_nothing(checkout, data, tmp_path):
    assert "not a positive number" in refused(checkout, "--budget", "0")
    assert "not a positive number" in refused(checkout, "--budget", "nan")
    assert "--nonsense" in refused(checkout, "--nonsense")
    assert "nowhere" in refused(checkout, "--data", str(tmp_path / "nowhere"))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.txt").write_text("too little")
    assert "small" in refused(checkout, "--data", str(tmp_path / "small"))
    assert "ANTHROPIC_API_KEY" in refused(checkout, "--researcher", "llm", *data)
    out = refused(checkout, "--data", "climbmix", AUTORESEARCH_ENDPOINT="http://127.0.0.1:9")
    assert "--data builtin" in out
    with ModelServer(["hello"], key="right") as server:
        out = refused(checkout, *data, ANTHROPIC_BASE_URL=server.url, ANTHROPIC_API_KEY="sk-wrong-key")
    assert "sk-wrong-key" not in out
    (checkout / "prepare.py").write_text((checkout / "prepare.py").read_text() + "\n")
    assert "uncommitted" in refused(checkout, *data)
    git(checkout, "checkout", "prepare.py")
    (checkout / "program.md").write_text(" \n")
    assert "program.md" in refused(checkout, *data)
    (checkout / "program.md").unlink()
    assert "program.md" in refused(checkout, *data)
    git(checkout, "checkout", "program.md")
    (checkout / "train.py").write_text("def (:\n")
    git(checkout, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qam", "broken")
    assert "train.py" in refused(checkout, *data)


def test_a_session_refuses_another_budget_and_names_the_way_out(checkout, data, corpus_path):
    run_agent(checkout, "--experiments", "0", "--researcher", "tuner", *data)
    done = run_agent(checkout, "--researcher", "tuner", "--data", str(corpus_path), "--budget", "2")
    assert done.returncode == 2 and "--tag" in done.stderr


def test_a_second_agent_is_refused(checkout, data):
    first = start_agent(checkout, "--researcher", "tuner", *data)
    wait_for(checkout, "trial")
    second = run_agent(checkout, "--researcher", "tuner", *data)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert second.returncode == 2 and len(second.stderr.strip().splitlines()) == 1
    check(checkout)


def test_a_killed_agent_leaves_no_process_and_the_same_command_continues(checkout, corpus_path):
    command = ("--researcher", "tuner", "--data", str(corpus_path), "--budget", "2", "--experiments", "0")
    process = start_agent(checkout, *command)
    wait_for(checkout, "trial")
    process.kill()
    process.communicate(timeout=20)
    until = time.monotonic() + 10
    while (left := trial_processes(checkout)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
    assert run_agent(checkout, *command).returncode == 0
    check(checkout)


def trial_processes(checkout) -> str:
    found = subprocess.run(["pgrep", "-f", "lab.referee|train.py"], capture_output=True, text=True).stdout.split()
    return " ".join(pid for pid in found if str(checkout) in cwd_of(pid))


def cwd_of(pid: str) -> str:
    import os

    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_python_train_py_by_hand_ends_with_a_summary(checkout, corpus_path):
    done = subprocess.run([sys.executable, "train.py"], cwd=checkout, capture_output=True, text=True, timeout=120,
                          env=environment(AUTORESEARCH_DATA=str(corpus_path), AUTORESEARCH_BUDGET="1"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("val_bpb:"))
    assert all(": " in line for line in lines[start:]) and 0 < float(lines[start].split(": ")[1]) < 20


# Pure functions -------------------------------------------------------------------------------------------------------


def experiment(number, status, *values, commit=None, source=""):
    commit = commit or f"c{number}"
    return Experiment(number, tuple(Row(commit, value, status=status if i == 0 else "repeat", experiment=number,
                                        source=source) for i, value in enumerate(values)))


def trial(val_bpb):
    return Trial(val_bpb, "" if val_bpb else "boom", 1, "val", 300, "cpu", "abc", "none")


def test_lower_is_kept_and_nothing_else():
    history = [experiment(0, "keep", 1.0, 1.2)]
    assert judge(trial(1.09), history, 0)[0] == "keep"
    assert judge(trial(1.1), history, 0)[0] == "discard"
    assert judge(trial(None), history, 0)[0] == "crash"
    assert judge(trial(9.0), [], 0)[0] == "keep"


def test_a_shorter_file_within_the_noise_is_kept_without_creep():
    history = [experiment(0, "keep", 1.00, 1.02), experiment(1, "keep", 0.99)]
    assert judge(trial(0.995), history, 3)[0] == "keep"
    assert judge(trial(0.995), history, 0)[0] == "discard"
    history.append(experiment(2, "keep", 1.00))  # itself a simplification: the bound stays where it was
    assert judge(trial(1.009), history, 3)[0] == "discard"


def test_the_incumbent_is_measured_again_after_eight_misses():
    history = [experiment(0, "keep", 1.0)] + [experiment(n, "discard", 2.0) for n in range(1, 8)]
    assert next_step(history, 1.0) == "tuner"
    history.append(experiment(8, "crash", None))
    assert next_step(history, 1.0) == "repeat"
    history[0] = experiment(0, "keep", 1.0, 1.1)
    assert next_step(history, 1.0) == "tuner"


def test_the_tuner_takes_its_share_of_the_turns():
    history, turns = [experiment(0, "keep", 1.0)], []
    for number in range(1, 101):
        turns.append(next_step(history, 0.3))
        history.append(experiment(number, "keep", 1.0 - number / 1000, source=turns[-1]))
    assert turns.count("tuner") in (29, 30) and len(set(turns)) == 2


def test_the_tuner_gives_back_the_turns_it_took_ahead_but_no_more_than_one():
    history = [experiment(n, "keep", 1.0, source="tuner" if n else "baseline") for n in range(50)]  # the API was out
    assert tuner_credit(history, 0.3) < 0
    turns = []
    for number in range(50, 58):
        turns.append(next_step(history, 0.3))
        history.append(experiment(number, "keep", 1.0, source=turns[-1]))
    assert turns.index("tuner") in range(3, 8)
    history += [experiment(n, "keep", 1.0, source="llm") for n in range(58, 99)]
    assert tuner_credit(history, 0.3) <= 2.3


def test_no_two_trials_share_a_seed():
    first = experiment(3, "keep", 1.0)
    assert len({next_seed(None, 3), next_seed(first, 3), next_seed(experiment(3, "keep", 1.0, 1.1), 3),
                next_seed(None, 4)}) == 4


def test_the_stand_in_is_what_the_edits_refer_to():
    assert all(TRAIN.count(change[0]) == 1 for change in (BETTER, WORSE, BROKEN))
