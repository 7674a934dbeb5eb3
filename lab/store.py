"""A session in git: save candidates, append rows, advance the branch, close, recover.

Promises: no branch but autoresearch/<tag> is touched, and no candidate's ref
(refs/autoresearch/<tag>/<number>) overwritten. Rows are appended to a copy in the git directory
first, then to results.tsv; where the two differ, results.tsv is put back and the other file kept.
train.py is written only over text that git holds. It does not decide what is kept.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path

from lab import ledger
from lab.checkout import TEXT, Checkout
from lab.ledger import SPARE, Row, SetupError, Status, write_durably

FILES = ("train.py", "program.md", "results.tsv")  # what a commit of the session replaces
ROWS_BYTES = 1 << 18  # about 1 000 rows; a candidate's commit holds no more, otherwise git would grow quadratically
HEADS = "refs/heads/autoresearch"
TAG = re.compile(r"(?!.*(\.\.|\.lock$|\.$))[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # as git demands


@dataclass
class Store:
    """One session in one work tree, held against a second agent until `release`."""

    here: Checkout
    tag: str
    new: bool = False     # the branch is not checked out before `begin`
    next_number: int = 0  # of the next experiment: no row and no trial in flight has it

    @classmethod
    def open(cls, root: Path, tag: str | None, today: str) -> "Store":
        """Lock work tree and session: without a tag the one that is checked out, else "nov23" of `today`."""
        if tag is not None and not TAG.fullmatch(tag):
            raise SetupError(f"{tag[:40]!r} cannot name a session: use letters, digits, - and _")
        here = Checkout.open(root)
        try:
            _, _, current = here.head().partition(f"{HEADS}/")
            store = cls._locked(here, tag or current, today)
            store.new = store.tag != current
            store._refuse_unfit()
        except (SetupError, OSError):
            here.release()
            raise
        return store

    @classmethod
    def _locked(cls, here: Checkout, tag: str, today: str) -> "Store":
        """Lock the session of this name, or an unused one where there is no name. No other work tree may hold it."""
        names = [tag] if tag else (f"{today}-{n}" if n > 1 else today for n in count(1))
        for store in (cls(here, name) for name in names):
            lock = store.copy.with_name(f"{store.tag}.lock")
            fits = tag or store._is_unused()
            if fits and here.lock(lock) and (tag or store._is_unused()):  # another may have begun
                return store
        raise SetupError(f"session {tag} is at work in another work tree: choose another --tag")

    def _is_unused(self) -> bool:
        """Whether nothing has this name, except a branch that a killed start left at HEAD."""
        places = "--format=%(refname) %(objectname) %(worktreepath)"
        found = self.here.git("for-each-ref", places, self.branch, self.candidate_ref())
        return found in ("", f"{self.branch} {self.here.resolve('HEAD')} ")

    def release(self) -> None:
        self.here.release()

    @property
    def root(self) -> Path:
        return self.here.root

    @property
    def branch(self) -> str:
        return f"{HEADS}/{self.tag}"

    @property
    def copy(self) -> Path:
        """Every row as it was appended. No editor, `git restore` or `git clean` reaches it."""
        return self.here.common_dir / "autoresearch" / f"{self.tag}.tsv"

    def candidate_ref(self, number: int | str = "") -> str:
        return f"refs/autoresearch/{self.tag}/{number}"

    def _refuse_unfit(self) -> None:
        """Raise for a work tree in which the session cannot start."""
        here, train, results = self.here, self.root / "train.py", self.root / "results.tsv"
        for path in map(self.root.joinpath, FILES):
            if path.exists():
                path.open("r+b").close()  # found now, not after a trial
        if not self.new or not self._is_unused():
            self._tip()
        if not here.resolve("HEAD:train.py"):
            raise SetupError("train.py is in no commit yet: run `git add train.py && git commit -m start`")
        changed = here.changes() - set(FILES[1:])
        texts = (_read(train), here.show(":train.py"))
        if not self.new and all(map(self._is_ours, texts)):
            changed.discard("train.py")
        if changed:
            names = ", ".join(sorted(changed)[:3])
            raise SetupError(f"uncommitted changes in {names}: commit or stash them (`git restore NAME` "
                             "brings a lost file back), then start again")
        committed = here.show("HEAD:results.tsv") or ledger.HEADER.encode()
        if self.new and not committed.startswith(_read(results)):
            raise SetupError("results.tsv has rows that no commit holds: run `git commit -m rows "
                             "results.tsv`, or move it away, then start again")

    def begin(self) -> list[str]:
        """Create the branch of a new session, without rows."""
        if not self.new:
            return []
        done = self.here.clear_locks(f"{self.branch}.lock")
        if not self.here.resolve(self.branch):  # it may be left of a start that died here
            self.here.move(self.branch, "HEAD", "")
        for path in (self.copy, self.root / "results.tsv"):
            write_durably(path, ledger.HEADER.encode())
        self.here.git("symbolic-ref", "-m", "autoresearch", "HEAD", self.branch)
        self.new = False
        return [*done, f"started session {self.tag} on branch autoresearch/{self.tag}"]

    def save(self, number: int, code: str, subject: str, body: str = "") -> str:
        """Commit a candidate under a ref of its own; the branch stays."""
        tip = self._tip()
        files = {"train.py": code.encode(*TEXT), "program.md": self._program()}
        if self.copy.stat().st_size <= ROWS_BYTES:
            files["results.tsv"] = self.copy.read_bytes()
        tree = self.here.tree(tip, files)
        commit = self.here.commit(tree, [tip], subject, body)
        self.here.move(self.candidate_ref(number), commit, "")  # fails where the ref exists
        self.next_number = max(self.next_number, number + 1)
        return commit

    def append(self, row: Row) -> list[str]:
        """The commit point: the row is on the disk. Returns a line for each thing that was mended."""
        before = self._settle_copy()
        ledger.append(self.copy, row)
        self._tip()  # raises where another branch is checked out; the row is safe all the same
        done = self._put_results_back(before)
        ledger.append(self.root / "results.tsv", row)
        return done

    def advance(self, commit: str) -> str:
        """Make a kept candidate the branch's head and train.py; idempotent. A note for the user."""
        tip, code = self._tip(), self.code_of(commit)
        is_earlier = self.here.contains(tip, commit)
        if not is_earlier or self.code_of(tip) != code:
            commit = self.here.git("rev-parse", "--verify", f"{commit}^{{commit}}")
            if is_earlier or self.here.resolve(f"{commit}^") != tip:  # the branch moved while its trial ran
                parents = [tip] if is_earlier else [tip, commit]
                subject = f"Return to {commit[:7]}" if is_earlier else "Join with later commits"
                commit = self.here.commit(self.here.tree(tip, {"train.py": code.encode(*TEXT)}), parents, subject)
            self.here.move(self.branch, commit, tip)
        return self._settle_tree()

    def close(self) -> str:
        """Commit rows and program.md on the branch; the commit, or "" where nothing changed."""
        tip, rows, commit = self._tip(), self._settle_copy(), ""
        self._put_results_back(rows)
        tree = self.here.tree(tip, {"program.md": self._program(), "results.tsv": rows})
        if tree != self.here.resolve(f"{tip}^{{tree}}"):
            history = ledger.experiments(self.rows())
            kept, best = [e.val_bpb for e in history if e.status == Status.KEEP], ledger.incumbent(history)
            gain = f", val_bpb {kept[0]:.6f} -> {best.val_bpb:.6f}" if best else ""
            brought = f"{len(history)} experiments, {len(kept)} kept{gain}"
            commit = self.here.commit(tree, [tip], f"Close session {self.tag}: {brought}")
            self.here.move(self.branch, commit, tip)
        self._settle_tree()
        return commit

    def _program(self) -> bytes:
        """program.md as it stands; HEAD's where it was deleted or emptied."""
        return _read(self.root / "program.md") or self.here.show("HEAD:program.md")

    def _tip(self) -> str:
        """The branch's commit. Raises SetupError where it is gone or not checked out."""
        tip = self.here.resolve(f"{self.branch}^{{commit}}")
        name = f"autoresearch/{self.tag}"
        command = f"git switch {name}"
        if tip and self.here.head() == self.branch:
            return tip
        if not tip:
            rows = Store(self.here, self.tag).rows()
            kept = [row.commit for row in rows if row.status == Status.KEEP] or ["COMMIT"]
            damaged = self.here.common_dir / self.branch
            command = f"rm {damaged} && " if damaged.exists() else ""
            command += f"git branch {name} {kept[-1]}"
        raise SetupError(f"{name} is not checked out here: run `{command}` and start again (no "
                         "row is lost), or choose another --tag")

    def _settle_tree(self) -> str:
        """Bring train.py and the index in line with HEAD; a note if a train.py edited by hand stays."""
        path, wanted, note = self.root / "train.py", self.here.show("HEAD:train.py"), ""
        if not self._is_ours(_read(path)):
            note = "train.py was edited by hand while the session ran: your text was left"
        elif _read(path) != wanted:
            write_durably(path, wanted)
        self.here.run("reset", "-q", "--", *FILES)  # where an editor holds the index: next time
        return note

    def _is_ours(self, text: bytes) -> bool:
        """Whether a train.py is empty, HEAD's or any candidate's; git may have made it CRLF."""
        plain = text.replace(b"\r\n", b"\n")
        usual = ("HEAD:train.py", "HEAD^:train.py")  # they spare a look at all candidates
        if not plain or any(self.here.show(name) in (text, plain) for name in usual):
            return True
        mine = {self.here.git("hash-object", "--stdin", data=data) for data in {text, plain}}
        refs = self.here.git("for-each-ref", "--format=%(refname):train.py", self.candidate_ref())
        known = self.here.git("cat-file", "--batch-check=%(objectname)", data=f"{refs}\n".encode())
        return not mine.isdisjoint(known.split())

    def rows(self) -> list[Row]:
        """The session's rows as `recover` will leave them."""
        data = b"" if self.new else self._rows()
        try:
            rows = ledger.parse(data)
        except ValueError as error:
            raise SetupError(f"{error}: mend that line, or run `rm -f {self.copy}`") from None
        if data and data.split(b"\n")[0].strip() != ledger.HEADER.encode().strip():
            raise SetupError(f"the rows of session {self.tag} have other columns than this program writes: start "
                             f"another session with --tag {self.tag}-2")
        return rows

    def train_code(self) -> str:
        """train.py in the work tree, byte for byte; HEAD's where it was deleted or emptied."""
        return (_read(self.root / "train.py") or self.here.show("HEAD:train.py")).decode(*TEXT)

    def code_of(self, commit: str) -> str:
        """A commit's train.py. Raises SetupError where git has lost it."""
        status, code, _ = self.here.run("cat-file", "blob", f"{commit}:train.py")
        if status:
            raise SetupError(f"git has lost the train.py of {commit} (see `git fsck`): restore .git, or "
                             "start anew from another branch")
        return code.decode(*TEXT)

    def code(self, number: int) -> str:
        """An experiment's train.py; raises as code_of() does."""
        return self.code_of(self.candidate_ref(number))

    def codes(self, numbers: Iterable[int]) -> dict[int, str]:
        """train.py by experiment, by one git for all; what it has lost is left out."""
        names, codes = {n: f"{self.candidate_ref(n)}:train.py\n" for n in numbers}, {}
        answers = BytesIO(self.here.run("cat-file", "--batch", data="".join(names.values()).encode())[1])
        for number in names:
            size = answers.readline().rpartition(b" ")[2].strip()  # "ID blob SIZE", or "NAME missing"
            if size.isdigit():
                codes[number] = answers.read(int(size) + 1)[:-1].decode(*TEXT)
        return codes

    def fingerprints(self) -> set[str]:
        """Syntax trees of all candidates. Only a message's last line is ours, not a model's."""
        format_ = "--format=%(contents:body)%00"
        bodies = self.here.git("for-each-ref", format_, self.candidate_ref()).split("\0")
        last = [body.strip().rpartition("\n")[2] for body in bodies]
        return {line.split()[1] for line in last if line.startswith("fingerprint: ")}

    def numbers(self) -> set[int]:
        """The experiments whose train.py is there."""
        names = self.here.git("for-each-ref", "--format=%(refname:lstrip=3)", self.candidate_ref()).split()
        return {int(name) for name in names if name.isdecimal()}

    def earlier_sessions(self) -> dict[str, list[Row]]:
        """The rows of the other sessions of this repository by name, in the order of their last rows."""
        sessions = {}
        for path in sorted(self.copy.parent.glob("*.tsv"), key=os.path.getmtime):
            with suppress(ValueError):  # a damaged file of another session stops nothing
                sessions[path.stem] = ledger.read(path) if path != self.copy else []
        return {tag: rows for tag, rows in sessions.items() if rows}

    def recover(self) -> list[str]:
        """Finish or undo what the last process left. Returns a line for each thing done."""
        done = self.here.clear_locks(f"{self.branch}.lock", f"{self.candidate_ref()}*.lock")
        rows, train = self.rows(), _read(self.root / "train.py")
        for name in FILES:
            (self.root / SPARE.format(name)).unlink(missing_ok=True)
        done += self._put_results_back(self._settle_copy())
        done += self._settle_candidates(rows)
        kept = [row for row in rows if row.status == Status.KEEP]
        for row in kept[-1:]:
            known = {self.code_of(row.commit)}
            if ledger.incumbent(ledger.experiments(rows)).own is not row:  # a repeat kept it again; the branch may lag
                known.add(self.code_of(kept[-2].commit))
            if self.here.contains(self.branch, row.commit) and self.code_of(self.branch) not in known:
                raise SetupError(f"train.py on autoresearch/{self.tag} is not that of experiment "
                                 f"{row.experiment}: start a new session from it with --tag NAME")
            self.advance(row.commit)
        self._settle_tree()
        if _read(self.root / "train.py") != train:
            done.append("put the incumbent's train.py back")
        return done

    def _rows(self) -> bytes:
        """The rows that were appended: those of our copy, or in a fresh clone those of results.tsv."""
        has_copy = self.copy.exists()
        data = _read(self.copy if has_copy else self.root / "results.tsv")
        data = data[: data.rfind(b"\n") + 1] or ledger.HEADER.encode()  # without a torn last line
        if not has_copy and not data.startswith(self.here.show(f"{self.branch}:results.tsv")):
            raise SetupError("results.tsv was changed by hand, and git's folder has no copy: run `mv "
                             "results.tsv results.tsv.edited; git restore results.tsv`")
        return data

    def _settle_copy(self) -> bytes:
        """The rows that were appended; our copy holds them and nothing else."""
        rows = self._rows()
        if _read(self.copy) != rows:
            self.copy.parent.mkdir(exist_ok=True)
            write_durably(self.copy, rows)
        return rows

    def _put_results_back(self, rows: bytes) -> list[str]:
        """Make results.tsv hold exactly these rows; a file with others is kept beside it."""
        path, done = self.root / "results.tsv", []
        if not rows.startswith(_read(path)):
            names = ("results.tsv.edited" + (f"-{n}" if n > 1 else "") for n in count(1))
            aside = next(self.root / name for name in names if not (self.root / name).exists())
            write_durably(aside, _read(path))
            done = [f"results.tsv was changed from outside: put its {len(rows.splitlines()) - 1} rows "
                    f"back; the other file is {aside.name}"]
        if _read(path) != rows:
            write_durably(path, rows)
        return done

    def _settle_candidates(self, rows: list[Row]) -> list[str]:
        """Every row's commit has its ref; a candidate without a row had no result and goes."""
        numbers, commits = self.numbers(), {row.experiment: row.commit for row in rows}
        self.next_number = max(commits, default=-1) + 1
        orders = "".join(f"delete {self.candidate_ref(n)}\n" for n in numbers - commits.keys())
        self.here.git("update-ref", "--stdin", data=orders.encode())
        lost = commits.keys() - numbers
        for number in lost:  # what a clone has not brought along stays lost
            self.here.run("update-ref", self.candidate_ref(number), commits[number], "")
        return [f"{len(lost)} experiments had lost their refs"] if lost else []


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
