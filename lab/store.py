"""git: save a candidate, advance the branch, close a session, and recover after a stop of any kind.

Promises: a session lives on branch autoresearch/<tag>, its candidates under refs/autoresearch/<tag>/<number>, and no
other branch is touched. Commits are made without the index. The row in results.tsv is the commit point: `recover`
finishes or undoes from the rows and refs alone what a dead process left. Text from a model reaches git through stdin.
Only `advance` and `recover` write train.py in the work tree, and only over text that git holds.
Does not decide what is kept. Damage that it cannot undo without losing something is one line for the user.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import ledger
from lab.checkout import OBJECT_ID, Checkout, decode, encode
from lab.ledger import Row, SetupError, spare, write_durably

FILES = ("train.py", "program.md", "results.tsv")  # what a candidate's tree replaces
STEERED = {"program.md", "results.tsv"}            # may differ from HEAD at any time
UNFINISHED = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
EXACT_BYTES = 1 << 18  # of rows (about 1 000) that every candidate copies; beyond, when they have grown by a sixteenth
INDEX_WAIT_S = 0.5   # for an editor's look at the index; a stale index is put right by the next call


@dataclass
class Store:
    """One session in one checkout, held against a second agent until `release`."""

    here: Checkout
    tag: str = ""
    new: bool = False        # the branch does not exist before `begin`
    leaving: str = ""        # tag of the session that a new one starts from
    rows_fd: int = -1        # results.tsv as we left it, even where somebody has put another file in its place
    rows_seen: tuple = ()    # what that file looked like
    rows_copy: tuple[str, int] = ("", 0)  # git's last copy of the rows: blob and bytes
    last_code: tuple[int, str] = (-1, "")

    # -- opening --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, tag: str | None, today: str) -> "Store":
        """Lock the checkout and choose the session; changes nothing. Raises SetupError for a start that is refused.

        Without a tag a checked-out session continues, else a new one is named after `today` ("nov23").
        """
        store = cls(Checkout.open(root))
        try:
            store._choose(tag, today)
            store._refuse_unfit()
        except SetupError:
            store.release()
            raise
        return store

    def release(self) -> None:
        """Let go of the checkout, and of git's helpers."""
        self._hold_rows(False)
        self.here.release()

    @property
    def root(self) -> Path:
        return self.here.root

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _choose(self, tag: str | None, today: str) -> None:
        """Set tag, new and leaving."""
        if tag is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", tag)
                                or self.here.run("check-ref-format", f"refs/heads/autoresearch/{tag}")[0]):
            raise SetupError(f"{ledger.one_line(tag, 40)!r} cannot name a session: use letters, digits, - and _")
        head = self.here.run("symbolic-ref", "-q", "HEAD")[1].decode("utf-8", "replace").strip()
        current = head.removeprefix("refs/heads/autoresearch/") if head.startswith("refs/heads/autoresearch/") else ""
        self.tag = tag or current or self._free_tag(today)
        self.new = self.tag != current
        self.leaving = current if self.new else ""

    def _free_tag(self, today: str) -> str:
        tags = [today] + [f"{today}-{n}" for n in range(2, 1000)]
        return next(tag for tag in tags if self._unused(tag))

    def _unused(self, tag: str) -> bool:
        """Nothing of a session has this name, or only a branch that a start left at HEAD before it died."""
        branch, head = f"refs/heads/autoresearch/{tag}", self.here.resolve("HEAD^{commit}")
        found = self.here.git("for-each-ref", "--format=%(refname) %(objectname) %(worktreepath)", branch,
                              f"refs/autoresearch/{tag}")
        return found.decode("utf-8", "replace").rstrip("\n") in ("", f"{branch} {head} ")

    def _refuse_unfit(self) -> None:
        """Raise SetupError for a checkout in which no session can start."""
        for name in UNFINISHED:
            if (self.here.git_dir / name).exists():
                raise SetupError("a git merge or rebase is unfinished here: finish or abort it, then start again")
        for name in FILES:
            if (self.root / name).is_symlink():
                raise SetupError(f"{name} is a symbolic link: put a regular file in its place")
        if self.new and not self.here.run("rev-parse", "-q", "--verify", "refs/heads/autoresearch")[0]:
            raise SetupError("a branch named autoresearch is in the way: rename it (git branch -m autoresearch NAME)")
        if self.new and not self._unused(self.tag):
            raise SetupError(f"session {self.tag} exists and is not checked out: "
                             f"run `git switch autoresearch/{self.tag}` first, or choose another --tag")
        commit = self.here.resolve("HEAD^{commit}")
        if not commit and self.new and not self.leaving:
            raise SetupError("the repository has no commit yet: run `git add -A && git commit -m start` first")
        session = Store(self.here, self.leaving) if self.leaving else self
        commit = commit or session._lost_tip()
        if not self.here.resolve(f"{commit}:train.py"):
            raise SetupError("train.py is not in the checked-out commit: run `git add train.py && git commit` first")
        session._refuse_uncommitted(commit)

    def _refuse_uncommitted(self, commit: str) -> None:
        changed = self.here.changes(commit) - STEERED
        if not self.new and "train.py" in changed and self._ours(self._blobs_of_train()):
            changed.discard("train.py")
        if changed:
            names = ", ".join(sorted(changed)[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise SetupError(f"uncommitted changes in {names}: commit or stash them, then start again")
        results = self._results()
        if self.new and results.count(b"\n") > 1 and not self.here.show("HEAD", "results.tsv").startswith(results):
            raise SetupError("results.tsv has rows that no commit holds: commit it or move it away, then start again")

    def begin(self) -> list[str]:
        """Create the branch of a new session, its results.tsv empty; the session left gets its closing commit."""
        if not self.new:
            return []
        done = []
        if self.leaving:
            leaving = Store(self.here, self.leaving)
            done = leaving.recover()
            leaving.close()
            leaving._hold_rows(False)
        else:
            self.here.clear_locks([self.branch])
        write_durably(self.root / "results.tsv", ledger.HEADER.encode())  # first: a session never begins with old rows
        self.here.git("update-ref", "-m", "autoresearch: new session", self.branch, "HEAD")
        self.here.git("symbolic-ref", "-m", "autoresearch: new session", "HEAD", self.branch)
        self.new = False
        return done + [f"started session {self.tag} on branch autoresearch/{self.tag}"]

    # -- the loop's four calls ------------------------------------------------------------------------------------

    @property
    def branch(self) -> str:
        return f"refs/heads/autoresearch/{self.tag}"

    def candidate_ref(self, number: int) -> str:
        return f"refs/autoresearch/{self.tag}/{int(number)}"

    def save(self, number: int, code: str, subject: str, body: str = "") -> str:
        """Commit a candidate under its ref, on top of the branch's head, which stays where it is."""
        parent = self._checked_out_tip()
        tree = self._tree(parent, self._blobs(encode(code), thrifty=True))
        commit = self._commit(tree, [parent], subject, body)
        self.here.git("update-ref", self.candidate_ref(number), commit)
        return commit

    def append(self, row: Row) -> list[str]:
        """The commit point: the row is on the disk, after all earlier ones, whatever was done to the file meanwhile.

        Returns a line for each thing that had to be mended. Raises SetupError where another branch is checked out: the
        session's branch then holds the rows, this one too.
        """
        done, path = [], self.root / "results.tsv"
        if (self.here.git_dir / "HEAD").read_text() != f"ref: {self.branch}\n":
            self._append_unseen(row)
        if self._look() != self.rows_seen:  # git stash, git restore, an editor
            done = self._recover_results(self._sound_results()[0])
        ledger.append(path, row)
        self._hold_rows()
        return done

    def _append_unseen(self, row: Row) -> None:
        """Commit the row on the session's branch, whose results.tsv is not in the work tree. Raises SetupError."""
        tip = self.here.resolve(f"{self.branch}^{{commit}}")
        rows = max(self._rows_left(), self.here.show(self.branch, "results.tsv"), key=len)
        blob = self.here.git("hash-object", "-w", "--stdin", data=rows + ledger.format_row(row).encode())
        tree = self._tree(tip, {"results.tsv": blob.decode().strip()})
        self._move(self._commit(tree, [tip], "Rows of a trial that ended on another branch", ""), tip)
        self._checked_out_tip()

    def _look(self) -> tuple:
        """What tells that nobody else has written results.tsv."""
        path = self.root / "results.tsv"
        status = path.stat() if path.exists() else None
        return (status.st_ino, status.st_size, status.st_mtime_ns) if status else ()

    def _hold_rows(self, hold: bool = True) -> None:
        """Remember results.tsv as it is now; its descriptor keeps the rows when another file takes its place."""
        if self.rows_fd >= 0:
            os.close(self.rows_fd)
        self.rows_fd = os.open(self.root / "results.tsv", os.O_RDONLY | os.O_CLOEXEC) if hold else -1
        self.rows_seen = self._look() if hold else ()

    def _rows_left(self) -> bytes:
        """The rows as we left them."""
        return os.pread(self.rows_fd, os.fstat(self.rows_fd).st_size, 0) if self.rows_fd >= 0 else b""

    def advance(self, commit: str) -> str:
        """Make a kept candidate the branch's head and train.py; idempotent. Returns a note for the user, or ""."""
        tip = self._checked_out_tip()
        names = (commit, f"{commit}^", f"{commit}^:train.py", f"{tip}:train.py")
        commit, parent, before, at_tip = self.here.ids(*names)
        if tip == parent:
            self._move(commit, tip)
        elif self.here.run("merge-base", "--is-ancestor", commit, tip)[0]:
            if before != at_tip:
                raise SetupError(f"train.py on autoresearch/{self.tag} was changed by a commit made by hand: start a "
                                 "new session from it with --tag NAME")
            self._move(self._join(commit, tip), tip)
        note = self._put_train({before, at_tip})
        self._align_index()
        return note

    def close(self) -> str:
        """Commit the last rows and program.md on the branch; returns the commit, or "" where nothing has changed."""
        tip = self._checked_out_tip()
        tree, commit = self._tree(tip, self._blobs()), ""
        if tree != self.here.ids(f"{tip}^{{tree}}")[0]:
            commit = self._commit(tree, [tip], *_closing_message(self.tag, ledger.parse(self._results())))
            self._move(commit, tip)
        self._align_index()
        return commit

    def _checked_out_tip(self) -> str:
        status, out, _ = self.here.run("rev-parse", f"{self.branch}^{{commit}}", "--symbolic-full-name", "HEAD")
        tip, head = (out.decode().split() + ["", ""])[:2]
        if status or head != self.branch:
            raise SetupError(f"autoresearch/{self.tag} is no longer checked out here: run "
                             f"`git switch autoresearch/{self.tag}`, then start again")
        return tip

    def _move(self, commit: str, tip: str) -> None:
        self.here.git("update-ref", "-m", "autoresearch", self.branch, commit, tip)

    def _join(self, commit: str, tip: str) -> str:
        """A commit of a kept candidate and of what was committed by hand while its trial ran."""
        tree = self._tree(tip, self._blobs(encode(self.code_of(commit))))
        return self._commit(tree, [tip, commit], "Join the kept experiment with commits made by hand", "")

    def _blobs(self, code: bytes | None = None, thrifty: bool = False) -> dict[str, str]:
        """Blob by name: program.md and results.tsv as they stand, and train.py where `code` is given.

        Thrifty: of many rows the last copy, until a sixteenth has come on top. One with every candidate would grow with
        the square of their number: 12 GB after 20 000.
        """
        sizes = {name: (self.root / name).stat().st_size for name in sorted(STEERED) if (self.root / name).is_file()}
        copy, n_copied = self.rows_copy
        n_bytes = sizes.get("results.tsv", 0)
        old = {"results.tsv": copy} if thrifty and EXACT_BYTES < n_copied <= n_bytes < n_copied * 17 // 16 else {}
        names, stdin = [name for name in sizes if name not in old], ["--stdin"] if code is not None else []
        words = ("hash-object", "-w", "--no-filters", *stdin, "--", *names)
        out = self.here.git(*words, data=code) if stdin or names else b""
        blobs = dict(zip(["train.py"] * len(stdin) + names, out.decode().split(), strict=True)) | old
        if "results.tsv" in names:
            self.rows_copy = blobs["results.tsv"], n_bytes
        return blobs

    def _tree(self, base: str, blobs: dict[str, str]) -> str:
        """The tree of `base` with these files in it."""
        entries = {}
        for line in self.here.git("ls-tree", "-z", base).split(b"\0")[:-1]:
            meta, name = line.split(b"\t", 1)
            entries[name] = meta
        for name, blob in blobs.items():
            mode = entries.get(name.encode(), b"100644").split()[0]
            entries[name.encode()] = mode + b" blob " + blob.encode()
        lines = b"".join(meta + b"\t" + name + b"\0" for name, meta in entries.items())
        return self.here.git("mktree", "-z", data=lines).decode().strip()

    def _commit(self, tree: str, parents: list[str], subject: str, body: str) -> str:
        lines = [ledger.one_line(subject, 200), "", *(ledger.one_line(line, 4000) for line in body.splitlines())]
        message = "\n".join(lines).strip().encode("utf-8", "replace") + b"\n"
        options = [word for parent in parents for word in ("-p", parent)]
        return self.here.git("commit-tree", tree, *options, data=message).decode().strip()

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
        path, kind = self.root / "train.py", "sha256" if any(len(blob) == 64 for blob in held) else "sha1"
        staged = self.here.run("ls-files", "-s", "--", "train.py")[1].decode().split()[1:2]
        if not held.issuperset(staged):
            return False
        data = path.read_bytes() if path.exists() else b""
        if not data or hashlib.new(kind, b"blob %d\0" % len(data) + data).hexdigest() in held:
            return True
        return self.here.git("hash-object", "--path=train.py", "train.py").decode().strip() in held  # autocrlf

    def _align_index(self) -> None:
        """Bring the index in line with HEAD for our three files; what the user has staged beside them stays."""
        deadline = time.monotonic() + INDEX_WAIT_S
        while self.here.run("reset", "-q", "--", *FILES)[0] and time.monotonic() < deadline:
            time.sleep(0.05)

    # -- reading --------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """The session's rows as `recover` will leave them."""
        return [] if self.new else self._sound_results()[1]

    def train_code(self) -> str:
        """train.py in the work tree, byte for byte: what `save` takes."""
        return decode((self.root / "train.py").read_bytes())

    def code_of(self, commit: str) -> str:
        """A commit's train.py. Raises SetupError where git has lost it."""
        assert re.fullmatch("[0-9a-f]{4,64}", commit), commit
        return decode(self.here.git("cat-file", "blob", f"{commit}:train.py"))

    def code(self, number: int) -> str:
        """An experiment's train.py. Raises SetupError where git has lost it."""
        if self.last_code[0] != number:  # the incumbent's is asked for again and again
            self.last_code = number, decode(self.here.git("cat-file", "blob", f"{self.candidate_ref(number)}:train.py"))
        return self.last_code[1]

    def codes(self, numbers: Iterable[int]) -> dict[int, str]:
        """train.py by experiment, in one call of git; what git has lost is left out."""
        wanted, found = list(numbers), {}
        names = "".join(f"{self.candidate_ref(number)}:train.py\n" for number in wanted).encode()
        out, at = self.here.git("cat-file", "--batch", data=names), 0
        for number in wanted:
            end = out.index(b"\n", at)
            head, at = out[at:end].split(), end + 1
            if head[-1] != b"missing":
                found[number] = decode(out[at : at + int(head[-1])])
                at += int(head[-1]) + 1
        return found

    def fingerprints(self) -> set[str]:
        """What the candidates' commit messages say of their syntax trees, in the last line: what stands above is text
        of a model, in which no NUL can stand."""
        out = self.here.git("for-each-ref", "--format=%(contents:body)%00", f"refs/autoresearch/{self.tag}/")
        last = [body.strip().rpartition(b"\n")[2] for body in out.split(b"\0")]
        return {line.split()[1].decode() for line in last if line.startswith(b"fingerprint: ")}

    def diff(self, number: int) -> str:
        """What an experiment changed in the train.py that was the incumbent."""
        ref = self.candidate_ref(number)
        words = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", f"{ref}^", ref, "--", "train.py")
        return self.here.git(*words).decode("utf-8", "replace")

    def earlier_rows(self) -> list[Row]:
        """The rows of all other sessions, as their branches hold them."""
        names = self.here.git("for-each-ref", "--format=%(refname)", "refs/heads/autoresearch/").decode().split()
        rows = []
        for name in names:
            with suppress(ValueError):  # a damaged file of another session is no reason to stop this one
                rows += ledger.parse(self.here.show(name, "results.tsv")) if name != self.branch else []
        return rows

    # -- recovery -------------------------------------------------------------------------------------------------

    def recover(self) -> list[str]:
        """Finish or undo what the last process left; returns one line for each thing that was done."""
        candidates = (self.here.common_dir / self.candidate_ref(0)).parent.glob("*.lock")
        refs = [self.branch, *(self.candidate_ref(int(path.stem)) for path in candidates if path.stem.isdecimal())]
        done = self.here.mended + self.here.clear_locks(refs)
        self.here.mended = []
        for name in FILES:
            spare(self.root / name).unlink(missing_ok=True)
        tip = self.here.resolve(f"{self.branch}^{{commit}}")
        if not tip:
            tip = self._lost_tip()
            self.here.restore_ref(self.branch, tip)
            done.append(f"put branch autoresearch/{self.tag} back to {tip[:7]}")
        if not self.here.index_sound():
            self.here.rebuild_index(tip)
            done.append("rebuilt git's index")
        sound, rows = self._sound_results()
        done += self._recover_results(sound)
        done += self._recover_candidates(rows)
        kept = next((row for row in reversed(rows) if row.status == "keep"), None)
        done += self._recover_head(tip, kept)
        self._hold_rows()
        return done

    def _lost_tip(self) -> str:
        """Where the branch stood: by its log, else by the last keep, or by what the last candidate was made on."""
        candidates, (_, rows) = self._candidates(), self._sound_results()
        log = self.here.common_dir / "logs" / self.branch
        logged = [line.split()[1] for line in reversed(log.read_text("utf-8", "replace").splitlines())
                  if len(line.split()) > 1] if log.exists() else []
        own = [row for row in rows if row.status != "repeat"]
        names = logged[:1]  # it may lag behind after a power cut: recover() then advances to the last keep
        names += [row.commit if row.status == "keep" else f"{row.commit}^" for row in reversed(own)]
        names += [f"{candidates[number]}^" for number in sorted(candidates, reverse=True)] + logged
        tip = next((found for name in names if (found := self.here.commit_id(name))), "")
        if not tip:
            raise SetupError(f"branch autoresearch/{self.tag} points at no commit, and no row says where it stood: "
                             "restore .git from a backup, or start anew from another branch")
        return tip

    def _recover_results(self, sound: bytes) -> list[str]:
        path, damaged, done = self.root / "results.tsv", self._results(), []
        if sound != damaged:
            if damaged:
                aside = self.root / "runs" / self.tag / f"results.damaged-{int(time.time())}.tsv"
                aside.parent.mkdir(parents=True, exist_ok=True)
                write_durably(aside, damaged)
            write_durably(path, sound)
            done.append("mended results.tsv from a copy of it")
        cut = ledger.repair(path)
        return done + ([f"results.tsv: {cut}"] if cut else [])

    def _recover_candidates(self, rows: list[Row]) -> list[str]:
        """Every row's commit has its ref again; a ref whose commit is gone keeps git from packing, so it goes too."""
        candidates = self._candidates()
        wanted = {row.experiment: row.commit for row in rows if row.status != "repeat" and row.commit}
        lost = {n: commit for n, commit in wanted.items() if not candidates.get(n, "").startswith(commit)}
        names = list(lost.values()) + list(candidates.values())
        lines = "".join(f"{name}^{{commit}}\n" for name in names).encode()
        out = self.here.git("cat-file", "--batch-check=%(objectname)", data=lines).decode().splitlines()
        found = {name: line for name, line in zip(names, out, strict=True) if OBJECT_ID.fullmatch(line.encode())}
        orders = [f"update {self.candidate_ref(n)} {found[commit]}" for n, commit in lost.items() if commit in found]
        gone = [n for n, commit in candidates.items() if commit not in found and n not in lost]
        orders += [f"delete {self.candidate_ref(n)}" for n in gone]
        self.here.git("update-ref", "--stdin", data="".join(f"{order}\n" for order in orders).encode())
        done = [f"gave experiment {n} its ref back" for n, commit in lost.items() if commit in found]
        gone += [n for n, commit in lost.items() if commit not in found]
        return done + [f"the train.py of experiment {n} is lost" for n in sorted(gone)]

    def _recover_head(self, tip: str, kept: Row | None) -> list[str]:
        """The last keep at the branch's head, train.py and the index in line with it."""
        done = []
        if kept:
            commit = self.here.commit_id(kept.commit)
            if not commit:
                raise SetupError(f"the commit of experiment {kept.experiment}, the incumbent, is gone from git: "
                                 "restore .git from a backup, or start anew with --tag NAME")
            if self.here.run("merge-base", "--is-ancestor", commit, tip)[0]:
                self.advance(commit)
                done.append(f"advanced to experiment {kept.experiment}, which was kept")
            elif len(set(self.here.ids(f"{commit}:train.py", f"{tip}:train.py"))) > 1:
                raise SetupError(f"train.py on autoresearch/{self.tag} is not that of experiment {kept.experiment}: "
                                 "start a new session from it with --tag NAME")
        changed = self.here.changes(self.branch)
        if "train.py" in changed:
            note = self._put_train(self._blobs_of_train())
            done.append(note or "put the incumbent's train.py back")
        if changed:
            self._align_index()
        return done

    def _sound_results(self) -> tuple[bytes, list[Row]]:
        """results.tsv and its rows, with a copy in place of lines that are damaged or lost; a torn last line stays.

        The copy is the longest of this session's rows that the last candidate, the branch or this process holds.
        """
        data, candidates = self._results(), self._candidates()
        whole = data[: data.rfind(b"\n") + 1]
        commits = [candidates[n] for n in sorted(candidates)[-1:]] + [self.branch]
        copies = [self._rows_left(), *(self.here.show(commit, "results.tsv") for commit in commits)]
        copy = max((copy for copy in copies if _first_commit(copy) and
                    candidates.get(0, "").startswith(_first_commit(copy))), key=len, default=b"")
        if copy == whole or not copy.startswith(whole):
            try:
                return data, ledger.parse(whole)
            except ValueError:
                pass
        mended = copy + b"\n".join(data.split(b"\n")[copy.count(b"\n"):])
        try:
            return mended, ledger.parse(mended)
        except ValueError as error:
            raise SetupError(f"{error}: mend that line by hand, then start again") from None

    def _candidates(self) -> dict[int, str]:
        """Commit by experiment number; refs that git cannot read are left out."""
        out = self.here.run("for-each-ref", "--format=%(refname:lstrip=3) %(objectname)",
                            f"refs/autoresearch/{self.tag}/")[1]
        pairs = [line.split() for line in out.decode().splitlines()]
        return {int(number): commit for number, commit in pairs if number.isdecimal()}

    def _blobs_of_train(self) -> set[str]:
        """Every train.py that this session has had."""
        names = [self.branch, f"{self.branch}^", *self._candidates().values()]
        lines = "".join(f"{name}:train.py\n" for name in names).encode()
        out = self.here.git("cat-file", "--batch-check=%(objectname)", data=lines).splitlines()
        return {line.decode() for line in out if OBJECT_ID.fullmatch(line)}

    def _results(self) -> bytes:
        path = self.root / "results.tsv"
        return path.read_bytes() if path.exists() else b""


def _closing_message(tag: str, rows: list[Row]) -> tuple[str, str]:
    """Subject and body of the closing commit: what the session brought."""
    history = ledger.experiments(rows)
    kept = [e for e in history if e.status == "keep" and e.val_bpb is not None]
    gain = f", val_bpb {kept[0].val_bpb:.6f} -> {kept[-1].val_bpb:.6f}" if kept else ""
    body = "\n".join(f"{e.number}: {e.val_bpb:.6f} {e.own.description}" for e in kept)
    return f"Close session {tag}: {len(history)} experiments, {len(kept)} kept{gain}", body


def _first_commit(data: bytes) -> str:
    """The commit in the first row: the baseline's, which tells one session's rows from another's."""
    return (data.split(b"\n") + [b""])[1].split(b"\t")[0].decode("utf-8", "replace")
