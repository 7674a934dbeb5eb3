"""What is not a kill: a full or failing disk, a lost GPU, a person in the checkout at night, an API that fails.

With the stand-in of stand_in.py. Each fault ends in one line with exit code 1, or in nothing at all, and the same
command continues with every row.
"""

import shutil
from pathlib import Path

import invariants
import pytest
import stand_in
from invariants import git
from stand_in import Agents
from test_recovery import recovered, started


@pytest.fixture(scope="module")
def rested(tmp_path_factory, corpus) -> Path:
    """A stand-in's checkout."""
    return stand_in.make(tmp_path_factory.mktemp("faults") / "checkout")


@pytest.fixture(scope="module")
def agents(rested):
    agents = Agents(rested)
    yield agents
    agents.close()


@pytest.fixture(scope="module")
def arguments(corpus_path):
    return ("--researcher", "tuner", "--tag", "nov23", "--data", str(corpus_path))


@pytest.fixture(scope="module")
def begun(rested, agents, arguments, tmp_path_factory) -> Path:
    """A session at rest with a few experiments."""
    root = Path(shutil.copytree(rested, tmp_path_factory.mktemp("begun") / "checkout", symlinks=True))
    code, out = agents.run(root, *arguments, "--experiments", "3")
    assert code == 0, out
    return root


@pytest.fixture
def root(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "checkout", symlinks=True))


def rows_of(root: Path) -> bytes:
    return (root / "results.tsv").read_bytes()


def stopped_in_one_line(code: int, out: str) -> str:
    """The line of a clean stop."""
    said = [line for line in out.splitlines() if line.startswith("agent.py: ")]
    assert code == 1 and "Traceback" not in out and len(said) == 1, (code, out)
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
            assert ("the disk is full" if action == "ENOSPC" else "put that right") in said, step
        code, out = agents.run(root, *arguments, "--experiments", "1")
        assert (code, "Traceback" in out) == (0, False), out
        recovered(root, rows)
        shutil.rmtree(root)
    return steps.stop


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_a_write_that_fails_is_a_clean_stop(begun, tmp_path, agents, arguments, action):
    fail_at_writes(begun, tmp_path, agents, arguments, action, range(8, 40, 15))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_every_write_that_fails_is_a_clean_stop(begun, tmp_path, agents, arguments, action):
    n_writes = fail_at_writes(begun, tmp_path, agents, arguments, action, range(60))
    print(f"{n_writes} writes")


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


@pytest.mark.parametrize("deed", HARMLESS)
def test_what_a_person_does_in_the_checkout_at_night_loses_no_row(root, agents, arguments, deed):
    before = rows_of(root)
    agents.start(root, *arguments, "--experiments", "4")
    started(root, agents)
    deed(root)
    code, out = agents.wait()
    assert (code, "Traceback" in out) == (0, False), out
    rows = recovered(root, before)
    assert rows.count(b"\n") == before.count(b"\n") + 4, out


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
