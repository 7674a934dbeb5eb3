"""What git holds of a session, for the report: its rows, its program.md, every train.py and every diff.

It only reads. It knows every session of the repository, also one that runs in another work tree. Without a repository
it finds nothing.
"""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import ledger, terminal
from lab.checkout import TEXT, Checkout
from lab.ledger import Row, SetupError
from lab.store import HEADS, Store

MAX_CODES_BYTES = 5_000_000  # of all texts of train.py that are read
PLAIN = "--no-color", "--no-ext-diff", "--", "train.py"


@dataclass(frozen=True)
class Archive:
    """What the rows do not tell of a session."""

    tag: str = ""
    program: str = ""                                        # program.md in force
    commit: str = ""                                         # of the program that the session began with
    whole: str = ""                                          # the diff from the baseline to the branch
    diffs: Mapping[int, str] = field(default_factory=dict)   # why and how each experiment changed train.py
    codes: Mapping[int, str] = field(default_factory=dict)   # train.py of the experiments that were asked for


def rows_of(root: Path, tag: str) -> list[Row]:
    """The rows of results.tsv, or of a session that is not checked out. Raises SetupError where there is neither."""
    heads = _git(root, "for-each-ref", "--format=%(refname:lstrip=3)", HEADS).split()
    try:
        if tag in heads and tag != terminal.current_tag():
            return _rows_elsewhere(root, tag)
        rows = ledger.read(root / "results.tsv") if tag in ("", *heads) else []
    except ValueError as error:
        raise SetupError(f"{error}: restore the line with git, or remove it") from None
    if not rows and tag not in heads:
        known = f"choose by --tag {' or '.join(heads[-5:])}" if heads else "run python agent.py first"
        raise SetupError(f"there is no session {tag}: {known}" if tag else f"no session is checked out: {known}")
    return rows


def _rows_elsewhere(root: Path, tag: str) -> list[Row]:
    """The rows of a session in another work tree, from its live copy; in a clone, from its branch."""
    common = root / _git(root, "rev-parse", "--git-common-dir").strip()
    copy = Store(Checkout(root, common_dir=common), tag).copy
    return ledger.read(copy) or ledger.parse(_git(root, "show", f"{HEADS}/{tag}:results.tsv").encode())


def read(root: Path, tag: str, numbers: Iterable[int] = ()) -> Archive:
    """Read everything, with the train.py of the experiments `numbers`, or of the first ones if not all fit."""
    refs = f"refs/autoresearch/{tag}"
    commit = _git(root, "rev-parse", "-q", "--verify", f"{refs}/0^").strip()
    whole = _git(root, "diff", f"{refs}/0", f"{HEADS}/{tag}", *PLAIN)
    return Archive(tag, _program(root, tag), commit, whole, _diffs(root, refs), _codes(root, tag, numbers))


def _diffs(root: Path, refs: str) -> dict[int, str]:
    """Each experiment's reasoning and diff."""
    log, diffs = _git(root, "log", "--no-walk", f"--glob={refs}/", "-p", "--format=%x00%S%n%b", *PLAIN), {}
    for part in log.split("\0")[1:]:  # neither a message nor the diff of a text holds a NUL
        ref, _, text = part.partition("\n")
        diffs[int(ref.rpartition("/")[2])] = text
    return diffs


def _program(root: Path, tag: str) -> str:
    """program.md of this work tree, or of the branch where another one is checked out."""
    if tag != terminal.current_tag():
        return _git(root, "show", f"{HEADS}/{tag}:program.md")
    path = root / "program.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _codes(root: Path, tag: str, numbers: Iterable[int]) -> dict[int, str]:
    """train.py by experiment, as many as fit, without what git has lost."""
    codes, n_bytes = {}, 0
    for number, code in Store(Checkout(root), tag).codes(numbers).items():
        n_bytes += len(code)
        if n_bytes <= MAX_CODES_BYTES:
            codes[number] = code.encode(*TEXT).decode("utf-8", "replace")
    return codes


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, encoding="utf-8", errors="replace").stdout
