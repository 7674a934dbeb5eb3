"""What a person does to files and git, between two runs and while a trial runs: HANDS is the whole list.

Each hand ends in one of two ways. The session goes on, or it is one clear line whose command brings it back. Either
way no row and no candidate is lost, and a results.tsv of somebody else's is kept beside ours.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import invariants
import pytest
from invariants import git
from test_store import (
    COPY,
    experiment,
    fresh,  # noqa: F401
    open_session,
    plain_git,  # noqa: F401
    put,
    refs,
    remove,
    rested,  # noqa: F401
    session,  # noqa: F401
    snapshot,
    staged_train,
    start,
)

from lab import ledger
from lab.ledger import Row, SetupError, Status

Deed = Callable[[Path], object]


class Hand(NamedTuple):
    """A deed, and the line it leads to: at the next start, and while a trial runs; "" where the session goes on."""

    deed: Deed
    next_start: str = ""
    in_trial: str = ""


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Hand:
    """Change the lines of results.tsv, the header first."""
    return saved(lambda data: b"".join(change(data.splitlines(keepends=True))))


def saved(change: Callable[[bytes], bytes]) -> Hand:
    """Save results.tsv as something else."""
    return Hand(lambda root: (root / "results.tsv").write_bytes(change((root / "results.tsv").read_bytes())))


def typed(*commands: str) -> Deed:
    """Type git commands."""
    return lambda root: [git(root, *command.split()) for command in commands]


def without_column(rows: list[bytes]) -> list[bytes]:
    return [row.replace(b"\t".join(row.split(b"\t")[2:4]) + b"\t", b"") for row in rows]


def time_set_back(root: Path) -> None:
    """An edit that keeps size and time."""
    path, status = root / "results.tsv", (root / "results.tsv").stat()
    path.write_bytes(path.read_bytes().replace(b"0.990000", b"0.110000"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def saved_by_an_editor(root: Path) -> None:
    """Equal bytes in another file."""
    (root / "swap").write_bytes((root / "results.tsv").read_bytes())
    (root / "swap").rename(root / "results.tsv")


def made_a_folder(root: Path) -> None:
    (root / "results.tsv").unlink()
    (root / "results.tsv").mkdir()


def made_a_link(root: Path) -> None:
    (root / "results.tsv").rename(root / "elsewhere")
    (root / "results.tsv").symlink_to("elsewhere")


def committed(name: str, text: bytes) -> Deed:
    return lambda root: (put(name, text)(root), git(root, "commit", "-q", "-m", "mine", name))


INVENTED = ledger.format_row(Row("abcdef1", 0.1, status=Status.KEEP, experiment=77)).encode()
UNCOMMITTED = "uncommitted changes in "
AWAY = r"not checked out here: run `git switch autoresearch/nov23`"
GONE = r"not checked out here: run `git branch autoresearch/nov23 [0-9a-f]"
NOT_THE_INCUMBENT = "not that of experiment 1: start a new session from it with --tag NAME"

HANDS = {
    # results.tsv
    "nothing": Hand(lambda root: None),
    "results.tsv touched": Hand(lambda root: (root / "results.tsv").touch()),
    "results.tsv saved by an editor": Hand(saved_by_an_editor),
    "rows sorted": lines(lambda rows: rows[:1] + sorted(rows[1:], reverse=True)),
    "rows reversed": lines(lambda rows: rows[:1] + rows[:0:-1]),
    "last row twice": lines(lambda rows: [*rows, rows[-1]]),
    "first row twice": lines(lambda rows: [*rows, rows[1]]),
    "every row twice": lines(lambda rows: rows + rows[1:]),
    "a row gone": lines(lambda rows: rows[:2] + rows[3:]),
    "the last row gone": lines(lambda rows: rows[:-1]),
    "all rows gone": lines(lambda rows: rows[:1]),
    "the header gone": lines(lambda rows: rows[1:]),
    "a number changed": saved(lambda data: data.replace(b"0.980000", b"0.000001")),
    "a number changed, the time set back": Hand(time_set_back),
    "a discard kept": saved(lambda data: data.replace(b"discard", b"keep")),
    "a keep discarded": saved(lambda data: data.replace(b"keep", b"discard")),
    "an unknown status": saved(lambda data: data.replace(b"discard", b"maybe")),
    "a comment in a cell": saved(lambda data: data.replace(b"\tx\t", b"\tlook at this\t")),
    "a column gone": lines(without_column),
    "a row invented": lines(lambda rows: [*rows, INVENTED]),
    "CRLF": saved(lambda data: data.replace(b"\n", b"\r\n")),
    "BOM": saved(lambda data: b"\xef\xbb\xbf" + data),
    "UTF-16": saved(lambda data: data.decode().encode("utf-16")),
    "NUL bytes behind": saved(lambda data: data + bytes(512)),
    "NUL bytes within": saved(lambda data: data[:300] + bytes(99) + data[300:]),
    "commas for tabs": saved(lambda data: data.replace(b"\t", b",")),
    "no last newline": saved(lambda data: data[:-1]),
    "a blank line": saved(lambda data: data + b"\n"),
    "another file": saved(lambda data: b"shopping\n"),
    "results.tsv emptied": Hand(put("results.tsv")),
    "results.tsv deleted": Hand(remove("results.tsv")),
    "results.tsv a link": Hand(made_a_link),
    "results.tsv a folder": Hand(made_a_folder, "Is a directory", "Is a directory"),
    "our copy of the rows deleted": Hand(remove(COPY)),
    # program.md, runs/, what lies about
    "program.md deleted": Hand(remove("program.md")),
    "program.md emptied": Hand(put("program.md")),
    "program.md not UTF-8": Hand(put("program.md", b"\xff\xfe\x00")),
    "program.md committed": Hand(committed("program.md", b"look there\n")),
    "runs deleted": Hand(lambda root: shutil.rmtree(root / "runs", ignore_errors=True)),
    "an untracked file": Hand(put("notes.txt", b"mine")),
    "an editor's swap file": Hand(put(".results.tsv.swp", b"mine")),
    # train.py and the code beside it
    "train.py deleted": Hand(remove("train.py")),
    "train.py emptied": Hand(put("train.py")),
    "train.py edited": Hand(put("train.py", b"mine\n"), UNCOMMITTED + "train.py"),
    "train.py edited and staged": Hand(staged_train, UNCOMMITTED + "train.py"),
    "train.py of a candidate": Hand(put("train.py", b"print(3)\n"), UNCOMMITTED + "train.py"),
    "train.py saved as CRLF": Hand(put("train.py", b"print(2)\r\n")),
    "lab made executable": Hand(lambda root: (root / "lab/part.py").chmod(0o755), UNCOMMITTED + "lab"),
    "train.py committed by hand": Hand(committed("train.py", b"mine\n"), NOT_THE_INCUMBENT),
    "lab edited": Hand(put("lab/part.py", b"mine\n"), UNCOMMITTED + "lab/part.py"),
    "lab deleted": Hand(remove("lab/part.py"), UNCOMMITTED + "lab/part.py"),
    "lab committed by hand": Hand(committed("lab/part.py", b"mine\n")),
    # git
    "git restore": Hand(typed("restore results.tsv program.md")),
    "git stash": Hand(typed("stash -q")),
    "git clean": Hand(typed("clean -fdxq")),
    "git add": Hand(typed("add results.tsv program.md")),
    "git rm --cached results.tsv": Hand(typed("rm -q --cached results.tsv")),
    "git rm --cached train.py": Hand(typed("rm -q --cached train.py")),
    "git checkout of old rows": Hand(typed("checkout -q HEAD~1 -- results.tsv")),
    "git commit --amend": Hand(typed("commit -q --amend -m mine")),
    "git reset --hard": Hand(typed("reset -q --hard")),
    "git reset to the first commit": Hand(typed("reset -q --hard HEAD~3")),
    "git gc": Hand(typed("gc -q --prune=now")),
    "git pack-refs": Hand(typed("pack-refs --all")),
    "a tag and a branch": Hand(typed("tag mine", "branch mine")),
    "another session's name taken": Hand(typed("branch autoresearch/nov24")),
    "a work tree added": Hand(lambda root: git(root, "worktree", "add", "-q", "--detach", f"{root}-2")),
    "another branch checked out": Hand(typed("checkout -q -f main"), AWAY, AWAY),
    "HEAD detached": Hand(typed("checkout -q -f --detach"), AWAY, AWAY),
    "the branch renamed": Hand(typed("branch -q -m mine"), GONE, GONE),
    "the branch deleted": Hand(typed("update-ref -d refs/heads/autoresearch/nov23"), GONE, GONE),
    "the branch deleted from another": Hand(
        typed("checkout -q -f main", "branch -q -D autoresearch/nov23"), GONE, GONE),
    "a discard's ref deleted": Hand(typed("update-ref -d refs/autoresearch/nov23/2")),
    "the keeps' refs deleted": Hand(
        typed("update-ref -d refs/autoresearch/nov23/1", "update-ref -d refs/autoresearch/nov23/0")),
    "core.autocrlf set": Hand(typed("config core.autocrlf true")),
    "signing demanded": Hand(typed("config commit.gpgsign true", "config user.signingkey none")),
}

# While a trial runs, one or two of a kind in the default run.
IN_TRIAL = {
    "nothing", "rows reversed", "a number changed", "NUL bytes within", "results.tsv emptied", "results.tsv a folder",
    "our copy of the rows deleted", "program.md emptied", "runs deleted", "train.py edited",
    "train.py committed by hand", "lab edited", "git stash", "git commit --amend", "git gc",
    "another branch checked out", "the branch deleted", "the keeps' refs deleted", "core.autocrlf set"}
CASES = [pytest.param(name, is_in_trial, id=f"{name}, {'in a trial' if is_in_trial else 'at rest'}",
                      marks=pytest.mark.long if is_in_trial and name not in IN_TRIAL else ())
         for name in HANDS for is_in_trial in (False, True)]


def said_by(action: Callable[[], object]) -> str:
    """The line with which an action is refused; "" where it is not."""
    try:
        action()
    except (SetupError, OSError) as refusal:
        assert "\n" not in str(refusal) and str(refusal), refusal
        return str(refusal)
    return ""


def one_trial(root: Path, deed: Deed) -> str:
    """A run in which a hand does something while a trial runs; the line that stops it, or ""."""
    with open_session(root) as store:
        commit = store.save(3, "print(9)\n", "tried", "")
        deed(root)
        said = said_by(lambda: store.append(Row(commit[:10], 1.5, status=Status.DISCARD, experiment=3)))
        return said or said_by(store.close)


def follow(root: Path, said: str) -> None:
    """Do what the line says, as a person would."""
    command = re.search("`([^`]+)`", said)
    if "commit or stash" in said:
        git(root, "stash", "-q")
    elif "--tag NAME" in said:
        start(root, "other")
    elif "Is a directory" in said:
        (root / "results.tsv").rmdir()
    else:
        assert command, said
        subprocess.run(["sh", "-c", command[1]], cwd=root, check=True, capture_output=True)


@pytest.mark.parametrize(("name", "in_trial"), CASES)
def test_a_hand_costs_no_row(rested: Path, name: str, in_trial: bool) -> None:  # noqa: F811
    hand, before = HANDS[name], (rested / "results.tsv").read_bytes()
    candidates, theirs = refs(rested, "refs/autoresearch/"), None
    if in_trial:
        said = one_trial(rested, hand.deed)
        assert re.search(hand.in_trial, said) if hand.in_trial else not said, said
    else:
        hand.deed(rested)
        theirs = (rested / "results.tsv").read_bytes() if (rested / "results.tsv").is_file() else None
    expected = hand.next_start
    for _ in range(3):
        state = snapshot(rested)
        if not (said := said_by(lambda: start(rested, "nov23"))):
            break
        assert expected and re.search(f"{expected}|{AWAY}", said) and snapshot(rested) == state, said
        follow(rested, said)
        if "--tag NAME" in said:
            assert git(rested, "show", "autoresearch/nov23:results.tsv").startswith(before.decode().strip())
            return
        expected = expected or AWAY
    assert not said
    after = (rested / "results.tsv").read_bytes()
    assert ledger.parse(after)[:3] == ledger.parse(before) and len(ledger.parse(after)) == 3 + in_trial
    assert candidates.items() <= refs(rested, "refs/autoresearch/").items()
    if theirs and not before.startswith(theirs):
        assert (rested / "results.tsv.edited").read_bytes() == theirs
    with open_session(rested) as store:
        experiment(store, True)
        store.close()
    invariants.check(rested)


def test_sixty_hands_are_in_the_table() -> None:
    assert len(HANDS) >= 60 and HANDS.keys() >= IN_TRIAL
