"""What is not a kill: a full or failing disk, a lost GPU, a person in the checkout at night, an API that fails.

With the stand-in of stand_in.py. Each fault ends in one line with exit code 1, or in nothing at all, and the same
command continues with every row.
"""

import itertools
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fakes
import invariants
import pytest
from invariants import git
from model_server import (
    ModelServer,
    Step,
    answer,
    cut,
    drip,
    ended,
    error_event,
    garbage,
    gone,
    html,
    refusal,
    stall,
    status,
)
from stand_in import Agents
from test_recovery import recovered, started


@pytest.fixture(scope="module")
def arguments(corpus_path):
    return ("--researcher", "tuner", "--tag", "nov23", "--data", str(corpus_path))


@pytest.fixture
def root(cheap_session, tmp_path) -> Path:
    return Path(shutil.copytree(cheap_session, tmp_path / "checkout", symlinks=True))


def rows_of(root: Path) -> bytes:
    return (root / "results.tsv").read_bytes()


def stopped_in_one_line(code: int, out: str) -> str:
    """The line of a clean stop, or of a start that was refused."""
    said = [line for line in out.splitlines() if line.startswith("agent.py: ")]
    assert code == 1 or code == 2 and "#" not in out, (code, out)
    assert "Traceback" not in out and len(said) == 1, out
    return said[0]


# -- the disk -----------------------------------------------------------------------------------------------------


def fail_at_writes(template: Path, to: Path, agents: Agents, arguments: tuple, action: str, steps: range) -> int:
    before = rows_of(template)
    for step in steps:
        root = Path(shutil.copytree(template, to / f"{action}{step}", symlinks=True))
        code, out = agents.run(root, *arguments, "--experiments", "1", step=step, action=action)
        rows = recovered(root, before)
        if code == 0:
            assert rows.count(b"\n") == before.count(b"\n") + 1
            if action == "ENOSPC":
                return step
        else:
            said = stopped_in_one_line(code, out)
            assert action == "EIO" or "the disk is full" in said, step
        code, out = agents.run(root, *arguments, "--experiments", "1")
        assert (code, "Traceback" in out) == (0, False), out
        recovered(root, rows)
        shutil.rmtree(root)
    return steps.stop


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_a_write_that_fails_is_a_clean_stop(cheap_session, tmp_path, agents, arguments, action):
    fail_at_writes(cheap_session, tmp_path, agents, arguments, action, range(8, 33, 23))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_every_write_that_fails_is_a_clean_stop(cheap_session, tmp_path, agents, arguments, action):
    n_writes = fail_at_writes(cheap_session, tmp_path, agents, arguments, action, range(60))
    print(f"{n_writes} writes")


@pytest.mark.long
def test_a_disk_that_is_really_full_stops_the_loop_and_freeing_some_lets_it_go_on(cheap_session, tmp_path, arguments):
    """On a small file system of its own, where the kernel lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    script = f"""
        mount -t tmpfs -o size=6m none {place} || exit 77
        cp -a {cheap_session} {place}/checkout && cd {place}/checkout
        head -c 100m /dev/zero > ../filler 2>/dev/null
        truncate -s -$((12 * 1024)) ../filler
        {sys.executable} agent.py {" ".join(arguments)} --experiments 5; echo "code $?"
        cp results.tsv {tmp_path}/then.tsv; rm ../filler
        {sys.executable} agent.py {" ".join(arguments)} --experiments 1; echo "code $?"
        cp -a {place}/checkout {tmp_path}/after
    """
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, timeout=120,
                          env=fakes.environment(), cwd=cheap_session)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    said = done.stdout + done.stderr
    assert "Traceback" not in said and "the disk is full; make room" in said, said
    assert [line for line in said.splitlines() if line.startswith("code ")] == ["code 1", "code 0"], said
    then, before = (tmp_path / "then.tsv").read_bytes(), rows_of(cheap_session)
    assert then.startswith(before) and then.endswith(b"\n")
    rows = recovered(tmp_path / "after", then)
    assert rows.count(b"\n") == then.count(b"\n") + 1


# -- the machine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["gpu_lost", "referee_lost"])
def test_a_lost_gpu_stops_the_loop_and_is_no_crash_of_the_candidate(root, agents, arguments, fault):
    before = rows_of(root)
    agents.start(root, *arguments)
    started(root, agents)
    (root / fault).touch()
    code, out = agents.wait()
    assert "look after GPU and disk" in stopped_in_one_line(code, out)
    after = rows_of(root)
    assert after.startswith(before) and b"\tcrash\t" not in after
    (root / fault).unlink()
    code, out = agents.run(root, *arguments, "--experiments", "1")
    assert code == 0 and rows_of(root).count(b"\n") == after.count(b"\n") + 1, out
    invariants.check(root)


def test_a_closed_terminal_changes_nothing(root, arguments):
    before = rows_of(root)
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(root)
        os.execve(sys.executable, [sys.executable, "agent.py", *arguments], fakes.environment(TERM="xterm"))
    trial, until = root / "runs" / "nov23" / "trial" / "train.py", time.monotonic() + 60
    then = trial.stat().st_mtime_ns
    while (not trial.exists() or trial.stat().st_mtime_ns == then) and time.monotonic() < until:
        select.select([terminal], [], [], 0.1)[0] and os.read(terminal, 1 << 16)
    os.close(terminal)
    n_rows = rows_of(root).count(b"\n")
    while rows_of(root).count(b"\n") < n_rows + 2 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert recovered(root, before).count(b"\n") >= n_rows + 2


# -- a person -----------------------------------------------------------------------------------------------------


def stash(root: Path) -> None:
    git(root, "-c", "user.name=P", "-c", "user.email=p@localhost", "stash", "-q")


def restore(root: Path) -> None:
    git(root, "restore", "results.tsv", "program.md")


def collect_garbage(root: Path) -> None:
    for _ in range(6):  # without --prune=now, which git itself calls unsafe beside another writer
        git(root, "gc", "-q")


def delete_runs(root: Path) -> None:
    shutil.rmtree(root / "runs", ignore_errors=True)


def empty_results(root: Path) -> None:
    (root / "results.tsv").write_bytes(b"")


def remove_results(root: Path) -> None:
    (root / "results.tsv").unlink()


def steer(root: Path) -> None:
    (root / "program.md").write_text("Look at the optimizer.\n")


def clean(root: Path) -> None:
    git(root, "clean", "-fdxq")


HARMLESS = [stash, restore, collect_garbage, delete_runs, empty_results, remove_results, steer, clean]


def test_what_a_person_does_in_the_checkout_at_night_loses_no_row(root, agents, arguments):
    before = rows_of(root)
    pid = agents.start(root, *arguments)
    for deed in HARMLESS:
        started(root, agents)
        deed(root)
    started(root, agents)
    os.kill(pid, signal.SIGTERM)
    code, out = agents.wait()
    assert (code, "Traceback" in out) == (0, False), out
    assert recovered(root, before) > before, out


def test_another_branch_checked_out_by_force_stops_the_loop_with_every_row(root, agents, arguments):
    before = rows_of(root)
    agents.start(root, *arguments)
    started(root, agents)
    git(root, "checkout", "-q", "-f", "main")
    said = stopped_in_one_line(*agents.wait())
    assert "git switch autoresearch/nov23" in said
    assert git(root, "status", "--porcelain") == ""
    git(root, "switch", "-q", "autoresearch/nov23")
    rows = recovered(root, before)
    assert rows.count(b"\n") == before.count(b"\n") + 1
    code, out = agents.run(root, *arguments, "--experiments", "1")
    assert code == 0, out
    recovered(root, rows)


# -- the model ----------------------------------------------------------------------------------------------------

IDEA = fakes.edit("an idea", ("def main():", "IDEA = 'half of it'\n\n\ndef main():"))
LATE = fakes.edit("whole", ("def main():", "IDEA = 'all of it'\n\n\ndef main():"))
PASSING = {
    "429": status(429), "429, wait 3 s": status(429, retry_after=3), "429, wait an hour": status(429, retry_after=3600),
    "429, wait nonsense": status(429, retry_after="soon"), "overloaded": status(529), "500": status(500),
    "502 in HTML": html(502), "503": status(503), "504": status(504), "408": status(408), "409": status(409),
    "a hotel's page": html(), "a cut stream": cut("an idea"), "a cut stream after a whole answer": cut(IDEA),
    "a broken stream": cut(IDEA, clean=False), "silence": stall(), "silence after a whole answer": stall(IDEA),
    "a drip": drip("x" * 10_000), "an error event": error_event(), "an error event after an answer": error_event(
        "api_error", IDEA), "no stop reason": ended(None, IDEA), "length limit": ended("max_tokens", IDEA),
    "a pause": ended("pause_turn", IDEA), "a tool": ended("tool_use"), "an empty answer": answer(""),
    "no byte": gone(), "no JSON": garbage(), "prose": answer("I would raise the learning rate."),
    "a refusal": refusal(), "a refusal in the middle": refusal(text=IDEA),
    "an edit of other text": answer(fakes.edit("other", ("no such line", "x = 1"))),
    "an edit that does not compile": answer(fakes.edit("broken", ("def main():", "def main(:"))),
    "an answer after five minutes": answer(LATE, wait_s=5), "413": status(413),
    "a full context": ended("model_context_window_exceeded"),
    "a prompt too long": status(400, message="prompt is too long"),
}
FATAL = {"402": status(402), "403": status(403), "404": status(404), "400": status(400),
         "spend limit": status(429, error_code="enforced_spend_limit_reached")}
FEW = ("429", "a cut stream after a whole answer", "a refusal", "no byte", "an edit of other text", "500")


def good_ideas() -> Callable[[dict], str]:
    numbers = itertools.count()
    return lambda request: fakes.edit("good", ("def main():", f"IDEA = {next(numbers)}\n\n\ndef main():"))


def live_through(root: Path, agents: Agents, arguments: tuple, faults: list[Step], n: int = 6) -> str:
    """n experiments with a model whose first answers are faults; what the agent printed."""
    before = rows_of(root)
    (root / "runs" / "trials.txt").unlink(missing_ok=True)
    with ModelServer([*faults, good_ideas()]) as server:
        code, out = agents.run(root, *arguments, "--experiments", str(n), "--researcher", "auto", server=server.url)
    assert (code, "Traceback" in out) == (0, False), out
    rows = recovered(root, before)
    assert rows.count(b"\n") == before.count(b"\n") + n and b"half of it" not in (root / "train.py").read_bytes()
    moments = [float(line) for line in (root / "runs" / "trials.txt").read_text().split()]
    longest_s = max(b - a for a, b in zip(moments, moments[1:], strict=False))
    assert longest_s < 2 + 5, out  # two minutes, sixty times shorter; and a busy machine
    return out


def test_the_loop_lives_through_faults_of_the_api(root, agents, arguments):
    live_through(root, agents, arguments, [PASSING[kind] for kind in FEW])


@pytest.mark.long
@pytest.mark.parametrize("kind", PASSING)
def test_the_loop_lives_through_each_fault_of_the_api(root, agents, arguments, kind):
    live_through(root, agents, arguments, [PASSING[kind]] * 4)


@pytest.mark.parametrize("kind", ["401", *(pytest.param(kind, marks=pytest.mark.long) for kind in FATAL)])
def test_the_tuner_goes_on_where_the_model_is_out_for_good_if_it_may(root, agents, arguments, kind):
    fault = FATAL.get(kind, status(401))
    out = live_through(root, agents, arguments, [fault] * 4, n=3)
    assert "the tuner goes on alone" in out
    with ModelServer([fault]) as server:
        code, out = agents.run(root, *arguments, "--researcher", "llm", server=server.url)
    stopped_in_one_line(code, out)
    invariants.check(root)


@pytest.mark.long
def test_a_server_that_is_gone_leaves_the_session_to_the_tuner(root, agents, arguments):
    code, out = agents.run(root, *arguments, "--experiments", "4", "--researcher", "auto", server="http://127.0.0.1:9")
    assert (code, "Traceback" in out) == (0, False), out
    invariants.check(root)


# -- ourselves ----------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_one_line_and_a_log_and_the_session_goes_on_once_it_is_mended(root, arguments):
    turns, before = root / "lab" / "turns.py", rows_of(root)
    whole = turns.read_text()
    turns.write_text(whole.replace("def next_step(", "def next_step(*_):\n    return 1 / 0\n\n\ndef unused("))
    for said in ("a fault of ours (ZeroDivisionError", "the same fault as the last time: see"):
        git(root, "-c", "user.name=P", "-c", "user.email=p@localhost", "commit", "-qam", "broken", "--allow-empty")
        done = fakes.run_agent(root, *arguments, "--notify", "(cat; echo $AUTORESEARCH_EVENT) > told")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and said in done.stderr, done.stderr
        assert "Traceback" not in done.stdout + done.stderr and rows_of(root) == before
    assert (root / "told").read_text() == (
        done.stderr.removeprefix("agent.py: ") + '{"event": "fault", "tag": "nov23"}\n')
    log = (root / "runs" / "nov23" / "fault.log").read_text()
    assert log.count("Traceback") == 2 and log.count("ZeroDivisionError: division by zero") == 2
    turns.write_text(whole)
    git(root, "-c", "user.name=P", "-c", "user.email=p@localhost", "commit", "-qam", "mended")
    done = fakes.run_agent(root, *arguments, "--experiments", "1")
    assert done.returncode == 0 and rows_of(root).count(b"\n") == before.count(b"\n") + 1, done.stderr


def test_ctrl_c_during_the_start_is_one_line_and_changes_nothing(root, arguments):
    before, asked = (rows_of(root), git(root, "rev-parse", "HEAD")), root / "runs" / "asked"
    command = f"sh -c 'echo $$ > {asked}.new; mv {asked}.new {asked}; exec sleep 200'"
    process = fakes.start_agent(root, *arguments, "--researcher", "auto", "--researcher-command", command)
    while not asked.exists():
        assert process.poll() is None
        time.sleep(0.02)
    for _ in range(10):  # one of many was lost once; a person presses again
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            _, said = process.communicate(timeout=5)
            break
    assert (process.returncode, said) == (0, "agent.py: stopped before anything ran\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(asked.read_text()), 0)
    assert (rows_of(root), git(root, "rev-parse", "HEAD")) == before
