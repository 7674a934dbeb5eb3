"""What must hold of a checkout at rest, whatever happened before: I1 to I3 of the design, by git and bytes alone."""

import subprocess
from pathlib import Path

from lab import ledger


def git(root: Path, *words: str, given: str = "") -> str:
    """Plain git, not the store's way to it. Raises AssertionError with what git said."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, input=given.encode())
    assert not done.returncode, f"git {' '.join(words)}: {done.stderr.decode()}"
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def check(root: Path) -> None:
    """Raise AssertionError, with details, where the session that is checked out in `root` breaks an invariant."""
    branch = git(root, "symbolic-ref", "HEAD")
    assert branch.startswith("refs/heads/autoresearch/"), branch
    rows = _check_rows(root)
    _check_candidates(root, branch.rpartition("/")[2], rows)
    _check_head(root, rows)
    _check_tree(root)
    said = subprocess.run(["git", "fsck", "--strict", "--no-dangling"], cwd=root, capture_output=True)
    assert not said.returncode and b"missing" not in said.stdout, (said.stdout, said.stderr)


def _check_rows(root: Path) -> list[ledger.Row]:
    """I3: whole rows, each experiment's number once."""
    data = (root / "results.tsv").read_bytes()
    assert data.startswith(ledger.HEADER.encode()) and data.endswith(b"\n"), data[-200:]
    rows = ledger.read(root / "results.tsv")
    assert len(rows) == data.count(b"\n") - 1
    numbers = []
    for row in rows:
        if row.status not in (ledger.Status.REPEAT, ledger.Status.BUSY):
            assert row.experiment not in numbers or row.status is ledger.Status.KEEP, row  # which a repeat may be
            numbers.append(row.experiment)
    assert numbers[:1] in ([], [0]), numbers
    return rows


def _check_candidates(root: Path, tag: str, rows: list[ledger.Row]) -> None:
    """Every row's train.py can be read under its ref."""
    names = git(root, "for-each-ref", "--format=%(refname) %(objectname)", f"refs/autoresearch/{tag}/").splitlines()
    refs = dict(name.split() for name in names)
    commits = [refs.get(f"refs/autoresearch/{tag}/{row.experiment}", "") for row in rows]
    for row, commit in zip(rows, commits, strict=True):
        assert commit.startswith(row.commit), (row.experiment, row.commit, commit)
    asked = "".join(f"{commit}:train.py\n" for commit in commits)
    found = git(root, "cat-file", "--batch-check=%(objecttype)", given=asked)
    assert set(found.split()) <= {"blob"}, found


def _check_head(root: Path, rows: list[ledger.Row]) -> None:
    """I1: HEAD is the last keep's commit, or only rows and directions were committed on top of it."""
    kept = [row.commit for row in rows if row.status == ledger.Status.KEEP]
    if kept:
        git(root, "merge-base", "--is-ancestor", kept[-1], "HEAD")
        changed = set(git(root, "diff", "--name-only", kept[-1], "HEAD").split())
        assert changed <= {"program.md", "results.tsv"}, (kept[-1], changed)


def _check_tree(root: Path) -> None:
    """I2: the work tree and the index equal HEAD, results.tsv and program.md aside; nothing half-done lies about."""
    changed = git(root, "--no-optional-locks", "status", "--porcelain=v2", "--untracked-files=no").splitlines()
    assert {line.split()[-1] for line in changed} <= {"program.md", "results.tsv"}, changed
    held = subprocess.run(["git", "cat-file", "blob", "HEAD:train.py"], cwd=root, capture_output=True).stdout
    assert (root / "train.py").read_bytes() == held
    common, own = (root / folder for folder in git(root, "rev-parse", "--git-common-dir", "--git-dir").splitlines())
    left = [path for folder in (common, own) for path in folder.rglob("*.lock")]
    ours = common / "autoresearch"
    assert [path for path in left if path.name != "autoresearch.lock" and path.parent != ours] == []
    assert list(root.glob(".*.new")) == []
