"""A session in git: save candidates, append rows, advance the branch, close, and recover after a stop of any kind.

Promises: a session lives on branch autoresearch/<tag>, its candidates under refs/autoresearch/<tag>/<number>, and no
other branch is touched; a candidate's ref is never overwritten. Rows are the commit point. They are appended to a copy
in the git directory first, then to results.tsv; where the two differ, results.tsv is put back and the other file kept.
Only `advance` and `recover` write train.py, and only over text that git holds. Does not decide what is kept.
"""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lab import ledger
from lab.checkout import Checkout
from lab.ledger import Row, SetupError, Status, spare, write_durably

FILES = ("train.py", "program.md", "results.tsv")  # what a commit of the session replaces
STEERED = {"program.md", "results.tsv"}            # may differ from HEAD at any time
UNFINISHED = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
EXACT_BYTES = 1 << 18  # up to here (about 1 000 rows) each candidate copies all rows
INDEX_WAIT_S = 0.5     # an editor may hold the index; the next call aligns a stale one
HEADS = "refs/heads/autoresearch"
BACKUP = "restore .git from a backup, or start anew from another branch"


@dataclass
class Store:
    """One session in one work tree, held against a second agent until `release`."""

    here: Checkout
    tag: str = ""
    new: bool = False        # the branch does not exist before `begin`
    leaving: str = ""        # tag of the session that a new one starts from
    next: int = 0            # the first number that no candidate has had
    seen: tuple = ()         # what results.tsv looked like after our last write
    rows_copy: tuple[str, int] = ("", 0)  # git's last copy of the rows: blob and bytes
    last_code: tuple[int, str] = (-1, "")

    # -- opening

    @classmethod
    def open(cls, root: Path, tag: str | None, today: str) -> "Store":
        """Lock work tree and session; nothing else changes. Raises SetupError for a start that is refused.

        Without a tag a checked-out session continues, else a new one is named after `today` ("nov23").
        """
        store = cls(Checkout.open(root))
        try:
            store._refuse_files()
            store._choose(tag, today)
            store._refuse_unfit()
        except SetupError:
            store.release()
            raise
        return store

    def release(self) -> None:
        """Let go of the work tree, the session and git's helpers."""
        self.here.release()

    @property
    def root(self) -> Path:
        return self.here.root

    @property
    def branch(self) -> str:
        return f"{HEADS}/{self.tag}"

    @property
    def results(self) -> Path:
        return self.root / "results.tsv"

    @property
    def copy(self) -> Path:
        """Every row as it was appended. No editor, no `git restore` and no clean-up of the work tree reaches it."""
        return self.here.common_dir / "autoresearch" / f"{self.tag}.tsv"

    def candidate_ref(self, number: int | str = "") -> str:
        return f"refs/autoresearch/{self.tag}/{number}"

    def _refuse_files(self) -> None:
        for name in FILES:
            path = self.root / name
            if path.is_symlink() or path.exists() and not path.is_file():
                raise SetupError(f"{name} is no regular file: put one in its place")
            if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                raise SetupError(f"{name} cannot be read and written: run `chmod u+rw {name}`, then start again")
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise SetupError(f"{self.root} cannot be written: run `chmod u+wx {self.root}`, then start again")

    def _choose(self, tag: str | None, today: str) -> None:
        """Set tag, new and leaving, and lock the session by its name, for all work trees of the repository."""
        fits = tag is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", tag)
        if not fits or tag and self.here.run("check-ref-format", f"{HEADS}/{tag}")[0]:
            raise SetupError(f"{ledger.one_line(tag, 40)!r} cannot name a session: use letters, digits, - and _")
        head = self.here.head()
        current = head.removeprefix(f"{HEADS}/") if head.startswith(f"{HEADS}/") else ""
        self.tag = tag or current
        if not self.tag:
            self._choose_free_tag(today)
        elif not self._lock(self.tag):
            raise SetupError(f"session {self.tag} is at work in another work tree: wait for it, or choose "
                             "another --tag")
        self.new = self.tag != current
        self.leaving = current if self.new else ""

    def _lock(self, tag: str) -> bool:
        return self.here.lock(self.copy.with_name(f"{tag}.lock"))

    def _choose_free_tag(self, today: str) -> None:
        """Lock a name before looking at it: another work tree may be starting in the same second."""
        for n in count(1):
            tag = today if n == 1 else f"{today}-{n}"
            if self._unused(tag) and self._lock(tag) and self._unused(tag):
                self.tag = tag
                return

    def _unused(self, tag: str) -> bool:
        """Nothing of a session has this name, or only a branch that a start left at HEAD before it died."""
        found = self.here.git("for-each-ref", "--format=%(refname) %(objectname) %(worktreepath)",
                              f"{HEADS}/{tag}", f"refs/autoresearch/{tag}").decode("utf-8", "replace").rstrip("\n")
        return found in ("", f"{HEADS}/{tag} {self.here.resolve('HEAD^{commit}')} ")

    def _refuse_unfit(self) -> None:
        """Raise SetupError for a work tree in which no session can start."""
        if any((self.here.git_dir / name).exists() for name in UNFINISHED):
            raise SetupError("a git merge or rebase is unfinished here: finish or abort it, then start again")
        if self.new and not self.here.run("rev-parse", "-q", "--verify", HEADS)[0]:
            raise SetupError("a branch named autoresearch is in the way: rename it (git branch -m autoresearch NAME)")
        if self.new and not self._unused(self.tag):
            raise SetupError(f"session {self.tag} exists and is not checked out: run `{self._switch()}` first, "
                             "or choose another --tag")
        commit = self.here.resolve("HEAD^{commit}")
        if not commit and self.new and not self.leaving:
            raise SetupError("the repository has no commit yet: run `git add -A && git commit -m start` first")
        session = Store(self.here, self.leaving) if self.leaving else self
        commit = commit or session._lost_tip()
        if not self.here.resolve(f"{commit}:train.py"):
            raise SetupError("train.py is not in the checked-out commit: run `git add train.py && git commit` first")
        session._refuse_uncommitted(commit)

    def _switch(self) -> str:
        """The command that checks the session out, also where its branch is gone."""
        if self.here.resolve(f"{self.branch}^{{commit}}"):
            return f"git switch autoresearch/{self.tag}"
        return f"git switch -c autoresearch/{self.tag} {self._lost_tip()[:12]}"

    def _refuse_uncommitted(self, commit: str) -> None:
        changed = self.here.changes(commit) - STEERED
        if not self.new and "train.py" in changed and self._ours(self._blobs_of_train()):
            changed.discard("train.py")
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise SetupError(f"uncommitted changes in {', '.join(sorted(changed)[:3])}{more}: commit or stash them "
                             "(`git restore NAME` brings a lost file back), then start again")
        data = self._results()
        if self.new and data.count(b"\n") > 1 and not self.here.show("HEAD", "results.tsv").startswith(data):
            raise SetupError("results.tsv has rows that no commit holds: commit it or move it away, then start again")

    def begin(self) -> list[str]:
        """Create the branch of a new session, without rows; the session left gets its closing commit."""
        if not self.new:
            return []
        done = []
        if self.leaving:
            leaving = Store(self.here, self.leaving)
            done = leaving.recover()
            leaving.close()
        else:
            self.here.clear_locks([self.branch])
        for path in (self.copy, self.results):  # first: a session never begins with the rows of another
            write_durably(path, ledger.HEADER.encode())
        if not self.here.resolve(self.branch):  # it may be left of a start that died here
            self.here.git("update-ref", "-m", "autoresearch: new session", self.branch, "HEAD", "")
        self.here.git("symbolic-ref", "-m", "autoresearch: new session", "HEAD", self.branch)
        self.new = False
        return [*done, f"started session {self.tag} on branch autoresearch/{self.tag}"]

    # -- the loop's calls

    def next_number(self) -> int:
        """The number of the next experiment: no row and no trial in flight has it."""
        return self.next

    def save(self, number: int, code: str, subject: str, body: str = "") -> str:
        """Commit a candidate under a ref of its own, on top of the branch's head, which stays where it is."""
        parent = self._checked_out_tip()
        tree = self.here.tree(parent, self._blobs(encode(code), thrifty=True))
        commit = self.here.commit(tree, [parent], subject, body)
        self.here.git("update-ref", self.candidate_ref(int(number)), commit, "")  # fails where the ref exists
        self.next = max(self.next, number + 1)
        return commit

    def append(self, row: Row) -> list[str]:
        """The commit point: the row is on the disk, after all earlier ones, whatever was done to results.tsv.

        Returns a line for each thing that was mended. Raises SetupError where another branch is checked out; the row
        is safe then, and the next start of the session brings it back.
        """
        ledger.append(self.copy, row)
        if self.here.head() != self.branch:
            self._checked_out_tip()
        if self._look() == self.seen:
            ledger.append(self.results, row)
            self.seen = self._look()
            return []
        return self._put_results_back(self.copy.read_bytes())

    def advance(self, commit: str) -> str:
        """Make a kept candidate the branch's head and train.py; idempotent. Returns a note for the user, or ""."""
        tip = self._checked_out_tip()
        names = (commit, f"{commit}^", f"{commit}^:train.py", f"{tip}:train.py")
        commit, parent, before, at_tip = self.here.ids(*names)
        if tip == parent:
            self._move(commit, tip)
        elif self.here.run("merge-base", "--is-ancestor", commit, tip)[0]:
            if before != at_tip and at_tip not in self._blobs_of_train():
                raise SetupError(f"train.py on autoresearch/{self.tag} was changed by a commit made by hand: start a "
                                 "new session from it with --tag NAME")
            self._move(self._join(commit, tip), tip)
        note = self._put_train({before, at_tip})
        self._align_index()
        return note

    def close(self) -> str:
        """Commit the last rows and program.md on the branch; returns the commit, or "" where nothing has changed."""
        tip = self._checked_out_tip()
        self._put_results_back(self._rows())
        tree, commit = self.here.tree(tip, self._blobs()), ""
        if tree != self.here.ids(f"{tip}^{{tree}}")[0]:
            commit = self.here.commit(tree, [tip], *_closing_message(self.tag, self.rows()))
            self._move(commit, tip)
        self._align_index()
        return commit

    def _checked_out_tip(self) -> str:
        """The branch's commit; a branch that was deleted is put back. Raises SetupError where HEAD is elsewhere."""
        if self.here.head() != self.branch:
            raise SetupError(f"autoresearch/{self.tag} is no longer checked out here: run `{self._switch()}`, "
                             "then start again; no row is lost")
        return self.here.resolve(f"{self.branch}^{{commit}}") or self._restore_branch()

    def _restore_branch(self) -> str:
        tip = self._lost_tip()
        (self.here.common_dir / self.branch).unlink(missing_ok=True)  # git would not write over a damaged one
        self.here.git("update-ref", "-m", "autoresearch: recovered", self.branch, tip)
        return tip

    def _move(self, commit: str, tip: str) -> None:
        self.here.git("update-ref", "-m", "autoresearch", self.branch, commit, tip)

    def _join(self, commit: str, tip: str) -> str:
        """A commit of a kept candidate and of what reached the branch while its trial ran."""
        tree = self.here.tree(tip, self._blobs(encode(self.code_of(commit))))
        return self.here.commit(tree, [tip, commit], "Join the kept experiment with later commits")

    def _blobs(self, code: bytes | None = None, thrifty: bool = False) -> dict[str, str]:
        """Blob by name: the rows, program.md as it stands, and train.py where `code` is given.

        Thrifty: many rows are copied again only when they have grown by a sixteenth. A copy with every candidate would
        grow with the square of their number, to 12 GB after 20 000.
        """
        blob, n_copied = self.rows_copy
        n_bytes = self.copy.stat().st_size
        reuse = thrifty and EXACT_BYTES < n_copied <= n_bytes < n_copied * 17 // 16
        paths = {} if reuse else {"results.tsv": self.copy}
        if (self.root / "program.md").is_file():
            paths["program.md"] = self.root / "program.md"
        stdin = ["--stdin"] if code is not None else []
        blobs = {"results.tsv": blob} if reuse else {}
        if stdin or paths:
            out = self.here.git("hash-object", "-w", "--no-filters", *stdin, "--", *map(str, paths.values()), data=code)
            blobs |= dict(zip(["train.py"] * len(stdin) + list(paths), out.decode().split(), strict=True))
        if not reuse:
            self.rows_copy = blobs["results.tsv"], n_bytes
        return blobs

    def _put_train(self, held: set[str]) -> str:
        """Write HEAD's train.py into the work tree; text that git does not hold stays, and is named."""
        path, wanted = self.root / "train.py", self.here.show(self.branch, "train.py")
        if path.exists() and path.read_bytes() == wanted:
            return ""
        if not (self._ours(held) or self._ours(self._blobs_of_train())):
            return "train.py was edited by hand while the session ran: your text was left in place"
        write_durably(path, wanted)
        return ""

    def _ours(self, held: set[str]) -> bool:
        """Whether train.py, in the work tree and in the index, is absent, empty or one of the blobs in `held`."""
        path = self.root / "train.py"
        staged = self.here.run("ls-files", "-s", "--", "train.py")[1].decode().split()[1:2]
        if not held.issuperset(staged):
            return False
        if not path.exists() or not path.stat().st_size:
            return True
        hashes = (self.here.git("hash-object", option, "train.py").decode().strip()
                  for option in ("--no-filters", "--path=train.py"))  # the second: autocrlf
        return any(found in held for found in hashes)

    def _align_index(self) -> None:
        """Bring the index in line with HEAD for our three files; what the user has staged beside them stays."""
        deadline = time.monotonic() + INDEX_WAIT_S
        while self.here.run("reset", "-q", "--", *FILES)[0] and time.monotonic() < deadline:
            time.sleep(0.05)

    # -- reading

    def rows(self) -> list[Row]:
        """The session's rows as `recover` will leave them."""
        return [] if self.new else self._parse(self._rows())

    def train_code(self) -> str:
        """train.py in the work tree, byte for byte; HEAD's where it was deleted or emptied."""
        path = self.root / "train.py"
        code = path.read_bytes() if path.exists() else b""
        return decode(code or self.here.show("HEAD", "train.py"))

    def code_of(self, commit: str) -> str:
        """A commit's train.py. Raises SetupError where git has lost it."""
        assert re.fullmatch("[0-9a-f]{4,64}", commit), commit
        return decode(self.here.git("cat-file", "blob", f"{commit}:train.py"))

    def code(self, number: int) -> str:
        """An experiment's train.py. Raises SetupError where git has lost it."""
        if self.last_code[0] != number:  # the loop asks for the incumbent's again and again
            blob = self.here.git("cat-file", "blob", f"{self.candidate_ref(int(number))}:train.py")
            self.last_code = number, decode(blob)
        return self.last_code[1]

    def codes(self, numbers: Iterable[int]) -> dict[int, str]:
        """train.py by experiment, in one call of git; what git has lost is left out."""
        wanted, found = list(numbers), {}
        names = "".join(f"{self.candidate_ref(int(number))}:train.py\n" for number in wanted).encode()
        out, at = self.here.git("cat-file", "--batch", data=names), 0
        for number in wanted:
            end = out.index(b"\n", at)
            head, at = out[at:end].split(), end + 1
            if head[-1] != b"missing":
                found[number] = decode(out[at : at + int(head[-1])])
                at += int(head[-1]) + 1
        return found

    def fingerprints(self) -> set[str]:
        """Syntax trees of all candidates, from the last line of their messages; the lines above are a model's text."""
        out = self.here.git("for-each-ref", "--format=%(contents:body)%00", self.candidate_ref())
        last = [body.strip().rpartition(b"\n")[2] for body in out.split(b"\0")]
        return {line.split()[1].decode() for line in last if line.startswith(b"fingerprint: ")}

    def earlier_sessions(self) -> list[list[Row]]:
        """The rows of the other sessions as their branches hold them, oldest branch first."""
        sessions: dict[str, list[Row]] = {}
        for ref in self.here.refs(f"{HEADS}/", "--sort=committerdate"):
            with suppress(ValueError):  # a damaged file of another session does not stop this one
                rows = ledger.parse(self.here.show(ref, "results.tsv")) if ref != self.branch else []
                if rows and len(rows) > len(sessions.get(rows[0].commit, [])):
                    sessions[rows[0].commit] = rows  # a session without a keep still carries its forerunner's
        return list(sessions.values())

    # -- recovery

    def recover(self) -> list[str]:
        """Finish or undo what the last process left; returns one line for each thing that was done."""
        locks = (self.here.common_dir / self.candidate_ref()).glob("*.lock")
        refs = [self.branch, *(self.candidate_ref(path.stem) for path in locks)]
        done = self.here.clear_locks(refs)
        for name in FILES:
            spare(self.root / name).unlink(missing_ok=True)
        if not self.here.resolve(f"{self.branch}^{{commit}}"):
            done.append(f"put branch autoresearch/{self.tag} back to {self._restore_branch()[:7]}")
        data = self._rows()
        rows = self._parse(data)
        if not self.copy.exists() or self.copy.read_bytes() != data:
            write_durably(self.copy, data)
        done += self._put_results_back(data)
        done += self._recover_candidates(rows)
        return done + self._recover_head(rows)

    def _lost_tip(self) -> str:
        """Where the branch stood: by its log, else by the last keep, or by what the last candidate was made on."""
        log = self.here.common_dir / "logs" / self.branch
        lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
        logged = [line.split()[1] for line in reversed(lines) if len(line.split()) > 1]
        names = logged[:1]  # it may lag behind after a power cut; recover() then advances to the last keep
        kept = [row.commit for row in self._parse(self._rows()) if row.status == Status.KEEP]
        names += kept[:-2:-1]
        candidates = self._candidates()
        names += [f"{candidates[number]}^" for number in sorted(candidates, reverse=True)] + logged
        names = [name for name in names if re.fullmatch(r"[0-9a-f]{4,64}\^?", name)]
        found = self.here.ids_of_many(f"{name}^{{commit}}" for name in names)
        if not found:
            raise SetupError(f"branch autoresearch/{self.tag} points at no commit, and no row says where it stood: "
                             + BACKUP)
        return next(iter(found.values()))

    def _rows(self) -> bytes:
        """The rows that were appended: our copy's, else git's last copy and what results.tsv adds to it."""
        if self.copy.exists():
            data = self.copy.read_bytes()
            return data[: data.rfind(b"\n") + 1] or ledger.HEADER.encode()  # a kill may have torn the last line
        data = self._results()
        data = data[: data.rfind(b"\n") + 1] or ledger.HEADER.encode()
        copy = self._rows_in_git()
        if data.startswith(copy):
            return data
        held = _n_rows(copy)
        if (lost := _n_rows(data) - held) > 0:
            raise SetupError(f"results.tsv was changed by hand, and its last {lost} rows have no other copy: mend it, "
                             f"or run `mv results.tsv results.tsv.edited` to go on from the {held} rows in git")
        return copy

    def _rows_in_git(self) -> bytes:
        """The longest copy of this session's rows in the last candidate and on the branch."""
        candidates = self._candidates()
        commits = [candidates[n] for n in sorted(candidates)[-1:]] + [self.branch]
        copies = [self.here.show(commit, "results.tsv") for commit in commits]
        first = candidates.get(0, "")  # the baseline's commit, in the first row, tells whose rows they are
        own = [data for data in copies if data.count(b"\n") > 1
               and first.startswith(data.split(b"\n")[1].split(b"\t")[0].decode("utf-8", "replace"))]
        return max(own, key=len, default=b"")

    def _parse(self, data: bytes) -> list[Row]:
        try:
            return ledger.parse(data)
        except ValueError as error:
            wrong = f"`rm {self.copy}`" if self.copy.exists() else "`git restore results.tsv`"
            raise SetupError(f"{error}: mend that line, or run {wrong}, then start again") from None

    def _put_results_back(self, rows: bytes) -> list[str]:
        """Make results.tsv hold exactly these rows. A file with anything else in it is kept under another name."""
        data, done = self._results(), []
        if data != rows or not self.results.exists():
            if rows.startswith(data):
                done.append("completed results.tsv, which had lost its last rows")
            else:
                names = ("results.tsv.edited" + (f"-{n}" if n > 1 else "") for n in count(1))
                aside = next(self.root / name for name in names if not (self.root / name).exists())
                write_durably(aside, data)
                done.append(f"results.tsv was changed from outside: put its {_n_rows(rows)} rows back; "
                            f"the other file is {aside.name}")
            write_durably(self.results, rows)
        self.seen = self._look()
        return done

    def _look(self) -> tuple:
        """What changes when anybody writes results.tsv."""
        with suppress(FileNotFoundError):
            status = self.results.stat()
            return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return ()

    def _recover_candidates(self, rows: list[Row]) -> list[str]:
        """Every row's commit has its ref again, and a candidate whose trial a stop ended has none.

        Nothing is in flight now, so what stands above the last row never had a result: its number is free again, and
        its train.py may be proposed again.
        """
        candidates = self._candidates()
        wanted = {row.experiment: row.commit for row in rows if row.status != Status.REPEAT and row.commit}
        self.next = max(wanted, default=-1) + 1
        stopped = "".join(f"delete {self.candidate_ref(n)} {commit}\n" for n, commit in candidates.items()
                          if n >= self.next)
        self.here.git("update-ref", "--stdin", data=stopped.encode())
        lost = {n: f"{commit}^{{commit}}" for n, commit in wanted.items()
                if not candidates.get(n, "").startswith(commit)}
        found = self.here.ids_of_many(lost.values()) if lost else {}
        back = [n for n, name in lost.items() if name in found]
        orders = "".join(f"update {self.candidate_ref(n)} {found[lost[n]]}\n" for n in back)
        self.here.git("update-ref", "--stdin", data=orders.encode())
        done = [f"gave experiment {n} its ref back" for n in back]
        if gone := sorted(set(lost) - set(back)):
            done.append(f"the train.py of {len(gone)} experiments is not in git (#{gone[0]} to #{gone[-1]})")
        return done

    def _recover_head(self, rows: list[Row]) -> list[str]:
        """The last keep at the branch's head, train.py and the index in line with it."""
        done = []
        kept = next((row for row in reversed(rows) if row.status == Status.KEEP), None)
        if kept:
            commit = self.here.resolve(f"{kept.commit}^{{commit}}")
            if not commit:
                raise SetupError(f"the commit of experiment {kept.experiment}, the incumbent, is gone from git: "
                                 + BACKUP)
            if self.here.run("merge-base", "--is-ancestor", commit, self.branch)[0]:
                self.advance(commit)
                done.append(f"advanced to experiment {kept.experiment}, which was kept")
            elif len(set(self.here.ids(f"{commit}:train.py", f"{self.branch}:train.py"))) > 1:
                raise SetupError(f"train.py on autoresearch/{self.tag} is not that of experiment {kept.experiment}: "
                                 "start a new session from it with --tag NAME")
        changed = self.here.changes(self.branch)
        if "train.py" in changed:
            note = self._put_train(self._blobs_of_train())
            done.append(note or "put the incumbent's train.py back")
        if changed:
            self._align_index()
        return done

    def _candidates(self) -> dict[int, str]:
        """Commit by experiment number."""
        found = self.here.refs(self.candidate_ref())
        numbers = {ref.rpartition("/")[2]: commit for ref, commit in found.items()}
        return {int(number): commit for number, commit in numbers.items() if number.isdecimal()}

    def _blobs_of_train(self) -> set[str]:
        """Every train.py that this session has had."""
        names = [self.branch, f"{self.branch}^", *self._candidates().values()]
        return set(self.here.ids_of_many(f"{name}:train.py" for name in names).values())

    def _results(self) -> bytes:
        return self.results.read_bytes() if self.results.exists() else b""


def _n_rows(data: bytes) -> int:
    return max(0, data.count(b"\n") - 1)


def encode(code: str) -> bytes:
    return code.encode("utf-8", "surrogateescape")


def decode(code: bytes) -> str:
    return code.decode("utf-8", "surrogateescape")


def _closing_message(tag: str, rows: list[Row]) -> tuple[str, str]:
    """Subject and body of the closing commit: what the session brought."""
    history = ledger.experiments(rows)
    kept = [e for e in history if e.status == Status.KEEP and e.val_bpb is not None]
    gain = f", val_bpb {kept[0].val_bpb:.6f} -> {kept[-1].val_bpb:.6f}" if kept else ""
    body = "\n".join(f"{e.number}: {e.val_bpb:.6f} {e.own.description}" for e in kept)
    return f"Close session {tag}: {len(history)} experiments, {len(kept)} kept{gain}", body
