"""Kills: of the agent, of its process group, of its trial, inside recovery, and at every write of an experiment.

With the stand-in of stand_in.py: real agent, git, runner and sandbox, and a train.py of a tenth of a second. After each
kill the next start must find every row, leave no process of the trial, and bring the checkout to rest.
"""

import os
import random
import shutil
import signal
import statistics
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import invariants
import psutil
import pytest
from stand_in import Agents
from test_store import DAMAGE

from lab import ledger
from lab.store import Store

LEFT_AFTER_S = 3.0   # within which nothing of a trial is alive any more


@pytest.fixture
def begun(cheap_session, tmp_path) -> Path:
    """A session at rest with a few experiments."""
    return Path(shutil.copytree(cheap_session, tmp_path / "begun", symlinks=True))


def processes(root: Path) -> dict[int, str]:
    """Command by number of every process that works below `root`, the reports aside: they end by themselves."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(folder / "cwd").startswith(str(root)):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if " report " not in command and command:
                    found[int(folder.name)] = command
    return found


def nothing_left(root: Path) -> None:
    """Raise AssertionError where a process of the dead agent is still there after a moment."""
    until = time.monotonic() + LEFT_AFTER_S
    while (left := processes(root)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left


def recovered(root: Path, before: bytes) -> bytes:
    """Recover, check every invariant, and that no row is lost; the rows' bytes."""
    nothing_left(root)
    store = Store.open(root, "nov23", "")
    with ExitStack() as end:
        end.callback(store.release)
        store.begin()
        store.recover()
        assert store.recover() == []
    invariants.check(root)
    after = (root / "results.tsv").read_bytes()
    assert after.startswith(before)
    refs = invariants.git(root, "for-each-ref", "refs/autoresearch/").splitlines()
    assert len(refs) - len({row.experiment for row in ledger.read(root / "results.tsv")}) in (0, 1)
    return after


def started(root: Path, agents: Agents, deadline_s: float = 20.0) -> float:
    """Seconds from the start to the first trial's."""
    trial = root / "runs" / "nov23" / "trial" / "train.py"
    before = trial.stat().st_mtime_ns if trial.exists() else 0
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            if trial.stat().st_mtime_ns != before:
                return time.monotonic() - agents.started_at
        time.sleep(0.005)
    raise AssertionError("no trial has started")


def kill_at_random(root: Path, agents: Agents, arguments: tuple, times: int, whole_group: bool) -> None:
    rng, rows, starts = random.Random(times + whole_group), b"", []
    for n in range(times):
        pid = agents.start(root, *arguments)
        if n % 4:
            starts.append(started(root, agents))
        time.sleep(rng.uniform(0, 0.8))
        (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)
        agents.wait()
        rows = recovered(root, rows)
    n_rows, median_s = rows.count(b"\n") - 1, statistics.median(starts)
    print(f"{times} kills, {n_rows} rows; first trial after {median_s:.2f} s (median), {max(starts):.2f} s at most")
    assert times < 100 or n_rows > times / 10 and median_s < 2


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_random_kill_loses_no_row_and_leaves_no_process(root, agents, arguments, whole_group):
    kill_at_random(root, agents, arguments, 3, whole_group)


def test_a_random_kill_with_two_slots_loses_no_row_either(root, agents, arguments):
    kill_at_random(root, agents, (*arguments, "--slots", "2"), 3, True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_hundred_random_kills_with_two_slots(root, agents, arguments, whole_group):
    kill_at_random(root, agents, (*arguments, "--slots", "2"), 100, whole_group)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("whole_group", [True, False])
def test_two_hundred_random_kills(root, agents, arguments, whole_group):
    kill_at_random(root, agents, arguments, 200, whole_group)


def kill_trials(root: Path, agents: Agents, arguments: tuple, times: int) -> None:
    """Kill the referee, the train.py or what it started, whichever is found: the loop goes on and counts it."""
    rng, killed = random.Random(times), 0
    pid = agents.start(root, *arguments)
    started(root, agents)
    while killed < times:
        os.kill(pid, 0)
        time.sleep(rng.uniform(0, 0.2))
        size = (root / "results.tsv").stat().st_size
        found = [number for number, words in processes(root).items() if "lab.referee" in words or "train.py" in words]
        with suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(found), signal.SIGKILL)
            killed += 1
            until = time.monotonic() + 20
            while (root / "results.tsv").stat().st_size == size and time.monotonic() < until:
                time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    code, out = agents.wait()
    assert (code, killed, "Traceback" in out) == (0, times, False), out
    rows = recovered(root, b"").decode()
    print(f"{times} kills, {rows.count(chr(10)) - 1} rows, {rows.count('crash')} crashes")


def test_a_killed_trial_is_a_crash_and_the_loop_goes_on(begun, agents, arguments):
    kill_trials(begun, agents, arguments, 3)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_killed_trials(begun, agents, arguments):
    kill_trials(begun, agents, arguments, 100)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_killed_trials_in_two_slots(root, agents, arguments):
    kill_trials(root, agents, (*arguments, "--slots", "2"), 100)


def kill_recoveries(root: Path, agents: Agents, arguments: tuple, times: int) -> None:
    """Damage what a power cut may damage, and kill the start that mends it."""
    rng, rows = random.Random(times), (root / "results.tsv").read_bytes()
    for _ in range(times):
        kind = rng.choice(sorted(BY_POWER_CUT))
        DAMAGE[kind](root)
        pid = agents.start(root, *arguments, "--experiments", "0")
        time.sleep(rng.uniform(0, 0.25))
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        agents.wait()
        assert recovered(root, rows) == rows, kind


NO_EQUAL_ROWS = {"zeros after rows", "row in our copy alone", "keep without advance", "advance without tree",
                 "head behind the rows"}
BY_POWER_CUT = set(DAMAGE) - NO_EQUAL_ROWS


def test_a_start_killed_while_it_mends_is_mended_by_the_next(begun, agents, arguments):
    kill_recoveries(begun, agents, arguments, 4)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_killed_recoveries(begun, agents, arguments):
    kill_recoveries(begun, agents, arguments, 100)


def kill_at_every_write(template: Path, to: Path, agents: Agents, arguments: tuple, steps: range) -> int:
    """Kill one experiment at these of its writes; how many were reached."""
    before = (template / "results.tsv").read_bytes()
    for step in steps:
        root = Path(shutil.copytree(template, to / str(step), symlinks=True))
        code, out = agents.run(root, *arguments, "--experiments", "1", step=step, action="die")
        assert code in (0, -signal.SIGKILL), out
        rows = recovered(root, before)
        if code == 0:
            assert rows.count(b"\n") == before.count(b"\n") + 1
            return step
        code, out = agents.run(root, *arguments, "--experiments", "1")
        assert (code, "Traceback" in out) == (0, False), out
        recovered(root, rows)
        shutil.rmtree(root)
    return steps.stop


def test_a_kill_at_some_writes_of_an_experiment(begun, tmp_path, agents, arguments):
    kill_at_every_write(begun, tmp_path / "copies", agents, arguments, range(7, 60, 27))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_kill_at_every_write_of_an_experiment(begun, tmp_path, agents, arguments):
    n_writes = kill_at_every_write(begun, tmp_path / "copies", agents, arguments, range(1000))
    print(f"{n_writes} writes")
    assert 30 < n_writes < 1000


# Nights -----------------------------------------------------------------------------------------


def soak(root: Path, agents: Agents, arguments: tuple, n_trials: int, rows_a_kill: int) -> list[tuple]:
    """Unattended trials with a kill every so many rows; (rows, MB, open files, files of runs/) before each kill.

    One kill in four hits the whole agent, the others the referee, the train.py or what it started.
    """
    rng, path, facts = random.Random(n_trials), root / "results.tsv", []
    shared = set(os.listdir("/dev/shm"))
    pid = agents.start(root, *arguments)
    while (n_rows := path.read_bytes().count(b"\n") - 1) < n_trials:
        for wanted in range(n_rows + 1, n_rows + 1 + rng.randint(1, rows_a_kill)):
            until = time.monotonic() + 120
            while path.read_bytes().count(b"\n") - 1 < wanted and time.monotonic() < until:
                time.sleep(0.05)
            assert time.monotonic() < until, "the loop stands still"
        agent = psutil.Process(pid)
        facts.append((wanted, round(agent.memory_info().rss / 1e6, 1), agent.num_fds(),
                      sum(1 for _ in (root / "runs").rglob("*"))))
        if rng.random() < 0.25:
            os.killpg(pid, signal.SIGKILL)
            agents.wait()
            recovered(root, b"")
            pid = agents.start(root, *arguments)
            started(root, agents)
            continue
        found = [number for number, words in processes(root).items() if "lab.referee" in words or "train.py" in words]
        with suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(found), signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    code, out = agents.wait()
    assert (code, "Traceback" in out) == (0, False), out
    recovered(root, b"")
    assert set(os.listdir("/dev/shm")) <= shared
    return facts


def test_a_short_night_with_kills_leaves_nothing_behind(begun, agents, arguments):
    assert soak(begun, agents, arguments, 12, 4)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_thousand_trials_with_random_kills_leave_nothing_behind_and_memory_flat(begun, agents, arguments):
    facts = soak(begun, agents, arguments, 2000, 50)
    for n_rows, megabytes, n_open, n_files in facts[:: max(1, len(facts) // 12)]:
        print(f"{n_rows:6} rows  {megabytes:6.1f} MB  {n_open:3} open files  {n_files:6} files below runs/")
    third = len(facts) // 3
    early, late = (statistics.median(part[1] for part in some) for some in (facts[:third], facts[-third:]))
    assert late - early < 30 and max(part[2] for part in facts) < 60
