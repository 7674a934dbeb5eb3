"""git: save a candidate, advance the branch, close a session, and recover after a stop of any kind.

Promises: a session lives on branch autoresearch/<tag>, its candidates under refs/autoresearch/<tag>/<number>, and no
other branch is touched. Commits are made without the index. The row in results.tsv is the commit point: `recover`
finishes or undoes from the rows and refs alone what a dead process left. Text from a model reaches git through stdin.
Only `advance` and `recover` write train.py in the work tree, and only over text that git holds.
Does not decide what is kept. Damage that it cannot undo without losing something is one line for the user.
"""

import fcntl
import os
import re
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import ledger
from lab.ledger import Row
from prepare import SetupError

FILES = ("train.py", "program.md", "results.tsv")  # what a candidate's tree replaces
STEERED = {"program.md", "results.tsv"}            # may differ from HEAD at any time
SETTINGS = (
    "core.fsync=objects,reference", "core.fsyncMethod=fsync",  # what the row relies on is on the disk before it
    "core.hooksPath=/dev/null",                                # the user's hooks would see, and may refuse, every step
    "core.fsmonitor=false", "core.commitGraph=false",          # caches that can be stale or damaged
    "i18n.commitEncoding=UTF-8",
)
UNFINISHED = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
GIT_WAIT_S = 2.0     # for another git process to end before its lock is called in use
INDEX_WAIT_S = 0.5   # for an editor's look at the index; a stale index is put right by the next call
LOCK_AGE_S = 60.0    # where processes cannot be listed (no /proc), an older lock counts as left behind
OBJECT_ID = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?\s*")


@dataclass
class Store:
    """One session in one checkout, held against a second agent until `release`."""

    root: Path
    repo: "git.Repo"  # noqa: F821
    git_dir: Path            # of this work tree
    common_dir: Path         # shared by all work trees: refs and objects
    lock_fd: int
    tag: str = ""
    new: bool = False        # the branch does not exist before `begin`
    leaving: str = ""        # tag of the session that a new one starts from
    _env: dict[str, str] = field(default_factory=dict)

    # -- opening --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, tag: str | None, today: str) -> "Store":
        """Lock the checkout and choose the session; changes nothing. Raises SetupError for a start that is refused.

        Without a tag a checked-out session continues, else a new one is named after `today` ("nov23").
        """
        root = root.resolve()
        repo = _repository(root)
        with ExitStack() as undo:
            undo.callback(repo.close)
            git_dir = Path(repo.git_dir).resolve()
            lock_fd = _lock(git_dir)
            undo.callback(os.close, lock_fd)
            store = cls(root, repo, git_dir, Path(repo.common_dir).resolve(), lock_fd)
            store._set_environment()
            store._choose(tag, today)
            store._refuse_unfit()
            undo.pop_all()
        return store

    def release(self) -> None:
        """Let go of git's helpers and of the checkout."""
        self.repo.close()
        os.close(self.lock_fd)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _set_environment(self) -> None:
        places = {"GIT_DIR": self.git_dir, "GIT_WORK_TREE": self.root, "GIT_INDEX_FILE": self.git_dir / "index",
                  "GIT_COMMON_DIR": self.common_dir, "GIT_OBJECT_DIRECTORY": self.common_dir / "objects"}
        self._env = {name: str(path) for name, path in places.items() if name in os.environ}  # started from a hook
        self._env["GIT_OPTIONAL_LOCKS"] = "0"  # looking changes nothing
        if self._run("var", "GIT_COMMITTER_IDENT")[0]:
            for role in ("AUTHOR", "COMMITTER"):
                self._env |= {f"GIT_{role}_NAME": "autoresearch", f"GIT_{role}_EMAIL": "autoresearch@localhost"}

    def _choose(self, tag: str | None, today: str) -> None:
        """Set tag, new and leaving."""
        if tag is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag)
                                or self._run("check-ref-format", f"refs/heads/autoresearch/{tag}")[0]):
            raise SetupError(f"{ledger.one_line(tag, 40)!r} cannot name a session: use letters, digits, - and _")
        _mend_head(self.git_dir, self.common_dir, self.root / "results.tsv")
        head = self._run("symbolic-ref", "-q", "HEAD")[1].decode("utf-8", "replace").strip()
        current = head.removeprefix("refs/heads/autoresearch/") if head.startswith("refs/heads/autoresearch/") else ""
        self.tag = tag or current or self._free_tag(today)
        self.new = self.tag != current
        self.leaving = current if self.new else ""

    def _free_tag(self, today: str) -> str:
        tags = [today] + [f"{today}-{n}" for n in range(2, 1000)]
        return next(tag for tag in tags if self._unused(tag))

    def _unused(self, tag: str) -> bool:
        """Nothing of a session has this name, or only a branch that a start left at HEAD before it died."""
        branch, head = f"refs/heads/autoresearch/{tag}", self._resolve("HEAD^{commit}")
        found = self._git("for-each-ref", "--format=%(refname) %(objectname) %(worktreepath)", branch,
                          f"refs/autoresearch/{tag}").decode("utf-8", "replace")
        return found.rstrip("\n") in ("", f"{branch} {head} ")

    def _refuse_unfit(self) -> None:
        """Raise SetupError for a checkout in which no session can start."""
        for name in UNFINISHED:
            if (self.git_dir / name).exists():
                raise SetupError("a git merge or rebase is unfinished here: finish or abort it, then start again")
        for name in FILES:
            if (self.root / name).is_symlink():
                raise SetupError(f"{name} is a symbolic link: put a regular file in its place")
        if self.new and not self._run("rev-parse", "-q", "--verify", "refs/heads/autoresearch")[0]:
            raise SetupError("a branch named autoresearch is in the way: rename it (git branch -m autoresearch NAME)")
        if self.new and not self._unused(self.tag):
            raise SetupError(f"session {self.tag} exists and is not checked out: "
                             f"run `git switch autoresearch/{self.tag}` first, or choose another --tag")
        commit = self._resolve("HEAD^{commit}")
        if not commit and self.new and not self.leaving:
            raise SetupError("the repository has no commit yet: run `git add -A && git commit -m start` first")
        session = self._session(self.leaving) if self.leaving else self
        commit = commit or session._lost_tip()
        if not self._resolve(f"{commit}:train.py"):
            raise SetupError("train.py is not in the checked-out commit: run `git add train.py && git commit` first")
        session._refuse_uncommitted(commit)

    def _refuse_uncommitted(self, commit: str) -> None:
        changed = self._changes(commit) - STEERED
        if not self.new and self._ours(self._blobs_of_train()):
            changed.discard("train.py")
        if changed:
            names = ", ".join(sorted(changed)[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise SetupError(f"uncommitted changes in {names}: commit or stash them, then start again")
        results = self._results()
        if self.new and results.count(b"\n") > 1 and not self._show("HEAD", "results.tsv").startswith(results):
            raise SetupError("results.tsv has rows that no commit holds: commit it or move it away, then start again")

    def _session(self, tag: str) -> "Store":
        return Store(self.root, self.repo, self.git_dir, self.common_dir, self.lock_fd, tag, _env=self._env)

    def begin(self) -> list[str]:
        """Create the branch of a new session, its results.tsv empty; the session left gets its closing commit."""
        if not self.new:
            return []
        done = []
        if self.leaving:
            leaving = self._session(self.leaving)
            done = leaving.recover()
            leaving.close()
        else:
            self._clear_locks()
        _write_durably(self.root / "results.tsv", ledger.HEADER.encode())  # first: old rows are never this session's
        start = self._git("rev-parse", "HEAD^{commit}").decode().strip()
        self._git("update-ref", "-m", "autoresearch: new session", self.branch, start)
        self._git("symbolic-ref", "-m", "autoresearch: new session", "HEAD", self.branch)
        self.new = False
        return done + [f"started session {self.tag} on branch autoresearch/{self.tag}"]

    # -- the loop's three calls -----------------------------------------------------------------------------------

    @property
    def branch(self) -> str:
        return f"refs/heads/autoresearch/{self.tag}"

    def candidate_ref(self, number: int) -> str:
        return f"refs/autoresearch/{self.tag}/{int(number)}"

    def save(self, number: int, code: str, subject: str, body: str = "") -> str:
        """Commit a candidate under its ref, on top of the branch's head, which stays where it is."""
        parent = self._checked_out_tip()
        commit = self._commit(self._tree(parent, code), [parent], subject, body)
        self._git("update-ref", self.candidate_ref(number), commit)
        return commit

    def advance(self, commit: str) -> str:
        """Make a kept candidate the branch's head and train.py; idempotent. Returns a note for the user, or ""."""
        commit, parent, *held = self._ids(commit, f"{commit}^", f"{commit}^:train.py")
        tip = self._checked_out_tip()
        held.append(self._ids(f"{tip}:train.py")[0])
        if tip == parent:
            self._move(commit, tip)
        elif self._run("merge-base", "--is-ancestor", commit, tip)[0]:
            self._move(self._merge(commit, tip, held), tip)
        note = self._put_train(set(held))
        self._align_index()
        return note

    def close(self) -> str:
        """Commit the last rows and program.md on the branch; returns the commit, or "" where nothing has changed."""
        tip = self._checked_out_tip()
        tree, commit = self._tree(tip), ""
        if tree != self._ids(f"{tip}^{{tree}}")[0]:
            commit = self._commit(tree, [tip], *_closing_message(self.tag, _parse(self._results())))
            self._move(commit, tip)
        self._align_index()
        return commit

    def _checked_out_tip(self) -> str:
        status, out, _ = self._run("rev-parse", f"{self.branch}^{{commit}}", "--symbolic-full-name", "HEAD")
        tip, head = (out.decode().split() + ["", ""])[:2]
        if status or head != self.branch:
            raise SetupError(f"autoresearch/{self.tag} is no longer checked out here: run "
                             f"`git switch autoresearch/{self.tag}`, then start again")
        return tip

    def _move(self, commit: str, tip: str) -> None:
        self._git("update-ref", "-m", "autoresearch", self.branch, commit, tip)

    def _merge(self, commit: str, tip: str, held: list[str]) -> str:
        """A commit made by hand came between: join it with the kept candidate, unless it changed train.py too."""
        if held[0] != held[1]:
            raise SetupError(f"train.py on autoresearch/{self.tag} was changed by a commit made by hand: start a new "
                             "session from it with --tag NAME")
        tree = self._tree(tip, self.code_of(commit))
        return self._commit(tree, [tip, commit], "Join the kept experiment with commits made by hand", "")

    def _tree(self, base: str, code: str | None = None) -> str:
        """The tree of `base` with program.md and results.tsv as they stand, and train.py where it is given."""
        names = [name for name in sorted(STEERED) if (self.root / name).is_file()]
        out = self._git("hash-object", "-w", "--no-filters", "--", *names) if names else b""
        blobs = dict(zip(names, out.decode().split(), strict=True))
        if code is not None:
            out = self._git("hash-object", "-w", "--no-filters", "--stdin", data=_encode(code))
            blobs["train.py"] = out.decode().strip()
        entries = {}
        for line in self._git("ls-tree", "-z", base).split(b"\0")[:-1]:
            meta, name = line.split(b"\t", 1)
            entries[name] = meta
        for name, blob in blobs.items():
            mode = entries.get(name.encode(), b"100644").split()[0]
            entries[name.encode()] = mode + b" blob " + blob.encode()
        lines = b"".join(meta + b"\t" + name + b"\0" for name, meta in entries.items())
        return self._git("mktree", "-z", data=lines).decode().strip()

    def _commit(self, tree: str, parents: list[str], subject: str, body: str) -> str:
        lines = [ledger.one_line(subject, 200), "", *(ledger.one_line(line, 4000) for line in body.splitlines())]
        message = "\n".join(lines).strip().encode("utf-8", "replace") + b"\n"
        options = [word for parent in parents for word in ("-p", parent)]
        return self._git("commit-tree", tree, *options, data=message).decode().strip()

    def _put_train(self, held: set[str]) -> str:
        """Write HEAD's train.py into the work tree; text that git does not hold stays, and is named."""
        path, wanted = self.root / "train.py", self._show(self.branch, "train.py")
        if path.exists() and path.read_bytes() == wanted:
            return ""
        if not self._ours(held):
            return "train.py was edited by hand while the session ran: your text was left in place"
        _write_durably(path, wanted)
        return ""

    def _ours(self, held: set[str]) -> bool:
        """Whether train.py, in the work tree and in the index, is absent, empty or one of the blobs in `held`."""
        path, held = self.root / "train.py", held | set(self._git("hash-object", "--stdin", data=b"").decode().split())
        staged = self._run("ls-files", "-s", "--", "train.py")[1].decode().split()[1:2]
        texts = [self._git("hash-object", option, "train.py").decode().strip()
                 for option in ("--no-filters", "--path=train.py")] if path.exists() else []
        return (not texts or not held.isdisjoint(texts)) and held.issuperset(staged)

    def _align_index(self) -> None:
        """Bring the index in line with HEAD for our three files; what the user has staged beside them stays."""
        deadline = time.monotonic() + INDEX_WAIT_S
        while self._run("reset", "-q", "--", *FILES)[0] and time.monotonic() < deadline:
            time.sleep(0.05)

    # -- reading --------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """The session's rows as `recover` will leave them."""
        return [] if self.new else _parse(self._sound_results())

    def train_code(self) -> str:
        """train.py in the work tree, byte for byte: what `save` takes."""
        return _decode((self.root / "train.py").read_bytes())

    def code_of(self, commit: str) -> str:
        """A commit's train.py. Raises SetupError where git has lost it."""
        assert re.fullmatch("[0-9a-f]{4,64}", commit), commit
        return _decode(self._git("cat-file", "blob", f"{commit}:train.py"))

    def code(self, number: int) -> str:
        """An experiment's train.py."""
        return _decode(self._git("cat-file", "blob", f"{self.candidate_ref(number)}:train.py"))

    def fingerprints(self) -> set[str]:
        """What the candidates' commit messages say of their syntax trees: a line `fingerprint: ...` each."""
        out = self._git("for-each-ref", "--format=%(contents:body)", f"refs/autoresearch/{self.tag}/")
        return {line.split()[1].decode() for line in out.splitlines() if line.startswith(b"fingerprint: ")}

    def diff(self, number: int) -> str:
        """What an experiment changed in the train.py that was the incumbent."""
        ref = self.candidate_ref(number)
        return self._git("diff", "--no-ext-diff", "--no-textconv", "--no-color", f"{ref}^", ref, "--",
                         "train.py").decode("utf-8", "replace")

    def earlier_rows(self) -> list[Row]:
        """The rows of all other sessions, as their branches hold them."""
        names = set(self._git("for-each-ref", "--format=%(refname)", "refs/heads/autoresearch/").decode().split())
        copies = [self._show(name, "results.tsv") for name in sorted(names - {self.branch})]
        return [row for copy in copies if not _row_error(copy) for row in _parse(copy)]

    # -- recovery -------------------------------------------------------------------------------------------------

    def recover(self) -> list[str]:
        """Finish or undo what the last process left; returns one line for each thing that was done."""
        done = self._clear_locks() + self._drop_empty()
        tip = self._resolve(f"{self.branch}^{{commit}}")
        if not tip:
            tip = self._lost_tip()
            self._git("update-ref", "-m", "autoresearch: recovered", self.branch, tip)
            done.append(f"put branch autoresearch/{self.tag} back to {tip[:7]}")
        if not self._index_sound():
            (self.git_dir / "index").unlink(missing_ok=True)
            self._git("read-tree", tip)
            done.append("rebuilt git's index")
        done += self._recover_results()
        rows = _parse(self._results())
        done += self._recover_candidates(rows)
        kept = next((row for row in reversed(rows) if row.status == "keep"), None)
        done += self._recover_head(tip, kept)
        return done

    def _clear_locks(self) -> list[str]:
        """Remove what a killed git left of its locks on this session, once no git works in the repository."""
        private, shared = self.git_dir, self.common_dir
        locks = [private / "index.lock", private / "HEAD.lock", shared / "packed-refs.lock", shared / "packed-refs.new",
                 shared / f"{self.branch}.lock", *(shared / "refs/autoresearch" / self.tag).glob("*.lock")]
        deadline = time.monotonic() + GIT_WAIT_S
        while found := [path for path in locks if path.exists()]:
            if not _git_at_work(self.root, found):
                break
            if time.monotonic() > deadline:
                raise SetupError("another git command is at work in this repository: let it end, then start again")
            time.sleep(0.05)
        for path in found:
            path.unlink(missing_ok=True)
        for name in FILES:
            (self.root / f".{name}.new").unlink(missing_ok=True)
        return [f"removed {path.name}, which a killed git had left" for path in found]

    def _drop_empty(self) -> list[str]:
        """Remove object and ref files that hold nothing, as a power cut leaves them: git stumbles over each."""
        shared = self.common_dir
        objects = [Path(entry.path) for folder in (shared / "objects").glob("[0-9a-f][0-9a-f]")
                   for entry in os.scandir(folder) if not entry.stat().st_size]
        refs = [path for path in (shared / self.branch, *(shared / "refs/autoresearch" / self.tag).glob("*"))
                if path.is_file() and not OBJECT_ID.fullmatch(path.read_bytes())]
        for path in objects + refs:
            path.unlink()
        if objects and self._index_sound():  # what the work tree and the index still hold is written again
            names = [name for name in self._git("ls-files", "-z").decode("utf-8", "surrogateescape").split("\0")
                     if name and "\n" not in name and (self.root / name).is_file()]
            for filters in ((), ("--no-filters",)):
                self._git("hash-object", "-w", *filters, "--stdin-paths", data=_encode("\n".join(names)))
            self._run("write-tree")
        return [f"removed {len(found)} empty {kind} file{'s'[:len(found) > 1]}"
                for kind, found in (("object", objects), ("ref", refs)) if found]

    def _lost_tip(self) -> str:
        """Where the branch stood, from rows and candidates: the last keep, or what the last candidate was made on."""
        candidates, rows = self._candidates(), _parse(self._sound_results())
        own = [row for row in rows if row.status != "repeat"]
        names = [row.commit if row.status == "keep" else f"{row.commit}^" for row in reversed(own)]
        names += [f"{candidates[number]}^" for number in sorted(candidates, reverse=True)]
        log = self.common_dir / "logs" / self.branch
        names += [line.split()[1] for line in reversed(log.read_text("utf-8", "replace").splitlines())
                  if len(line.split()) > 1] if log.exists() else []
        tip = next((found for name in names if (found := self._commit_id(name))), "")
        if not tip:
            raise SetupError(f"branch autoresearch/{self.tag} points at no commit, and no row says where it stood: "
                             "restore .git from a backup, or start anew from another branch")
        return tip

    def _recover_results(self) -> list[str]:
        path, sound, done = self.root / "results.tsv", self._sound_results(), []
        if sound != self._results():
            if damaged := self._results():
                aside = self.root / "runs" / self.tag / f"results.damaged-{int(time.time())}.tsv"
                aside.parent.mkdir(parents=True, exist_ok=True)
                _write_durably(aside, damaged)
            _write_durably(path, sound)
            done.append("mended results.tsv from git's copy of it")
        cut = ledger.repair(path)
        return done + ([f"results.tsv: {cut}"] if cut else [])

    def _recover_candidates(self, rows: list[Row]) -> list[str]:
        """Every row's commit has its ref again; a ref whose commit is gone keeps git from packing, so it goes too."""
        candidates = self._candidates()
        wanted = {row.experiment: row.commit for row in rows if row.status != "repeat" and row.commit}
        lost = {n: commit for n, commit in wanted.items() if not candidates.get(n, "").startswith(commit)}
        names = list(lost.values()) + list(candidates.values())
        lines = "".join(f"{name}^{{commit}}\n" for name in names).encode()
        out = self._git("cat-file", "--batch-check=%(objectname)", data=lines).decode().splitlines()
        found = {name: line for name, line in zip(names, out, strict=True) if OBJECT_ID.fullmatch(line.encode())}
        orders = [f"update {self.candidate_ref(n)} {found[commit]}" for n, commit in lost.items() if commit in found]
        gone = [n for n, commit in candidates.items() if commit not in found and n not in lost]
        orders += [f"delete {self.candidate_ref(n)}" for n in gone]
        self._git("update-ref", "--stdin", data="".join(f"{order}\n" for order in orders).encode())
        done = [f"gave experiment {n} its ref back" for n, commit in lost.items() if commit in found]
        gone += [n for n, commit in lost.items() if commit not in found]
        return done + [f"the train.py of experiment {n} is lost" for n in sorted(gone)]

    def _recover_head(self, tip: str, kept: Row | None) -> list[str]:
        """The last keep at the branch's head, train.py and the index in line with it."""
        done = []
        if kept:
            commit = self._commit_id(kept.commit)
            if not commit:
                raise SetupError(f"the commit of experiment {kept.experiment}, the incumbent, is gone from git: "
                                 "restore .git from a backup, or start anew with --tag NAME")
            if self._run("merge-base", "--is-ancestor", commit, tip)[0]:
                self.advance(commit)
                done.append(f"advanced to experiment {kept.experiment}, which was kept")
            elif len(set(self._ids(f"{commit}:train.py", f"{tip}:train.py"))) > 1:
                raise SetupError(f"train.py on autoresearch/{self.tag} is not that of experiment {kept.experiment}: "
                                 "start a new session from it with --tag NAME")
        changed = self._changes(self.branch)
        if "train.py" in changed:
            note = self._put_train(self._blobs_of_train())
            done.append(note or "put the incumbent's train.py back")
        if changed:
            self._align_index()
        return done

    def _sound_results(self) -> bytes:
        """results.tsv, with git's copy in place of lines that are damaged or lost; a torn last line stays.

        Git's copy is the longest that a candidate or the branch holds of this session's rows.
        """
        data, candidates = self._results(), self._candidates()
        whole = data[: data.rfind(b"\n") + 1]
        commits = [candidates[n] for n in sorted(candidates)[-1:]] + [self.branch]
        copies = [copy for commit in commits if self._own_rows(copy := self._show(commit, "results.tsv"), candidates)]
        copy = max(copies, key=len, default=b"")
        error = _row_error(whole)
        if not error and not copy.startswith(whole):
            return data
        mended = data if copy == whole else copy + b"\n".join(data.split(b"\n")[copy.count(b"\n"):])
        if error := _row_error(mended[: mended.rfind(b"\n") + 1]):
            raise SetupError(f"{error}: mend that line by hand, then start again")
        return mended

    @staticmethod
    def _own_rows(copy: bytes, candidates: dict[int, str]) -> bool:
        """Whether a results.tsv in git begins with this session's baseline, not with an earlier session's."""
        commit = (copy.split(b"\n") + [b""])[1].split(b"\t")[0].decode("utf-8", "replace")
        return bool(commit) and candidates.get(0, "").startswith(commit)

    def _candidates(self) -> dict[int, str]:
        """Commit by experiment number; refs that git cannot read are left out."""
        out = self._run("for-each-ref", "--format=%(refname:lstrip=3) %(objectname)",
                        f"refs/autoresearch/{self.tag}/")[1]
        pairs = [line.split() for line in out.decode().splitlines()]
        return {int(number): commit for number, commit in pairs if number.isdecimal()}

    def _blobs_of_train(self) -> set[str]:
        """Every train.py that this session has had."""
        names = [self.branch, f"{self.branch}^", *self._candidates().values()]
        lines = "".join(f"{name}:train.py\n" for name in names).encode()
        return {line for line in self._git("cat-file", "--batch-check=%(objectname)", data=lines).decode().splitlines()
                if OBJECT_ID.fullmatch(line.encode())}

    def _changes(self, commit: str) -> set[str]:
        """Names of tracked files that differ from `commit`, in the work tree or in the index."""
        plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=dirty", "--name-only",
                 "-z")
        with tempfile.TemporaryDirectory() as folder:
            env = {}
            if not self._index_sound():
                env["GIT_INDEX_FILE"] = f"{folder}/index"
                self._git("read-tree", commit, env=env)
            out = self._git(*plain, commit, "--", env=env) + self._git(*plain, "--cached", commit, "--", env=env)
        return {name.decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name}

    def _index_sound(self) -> bool:
        return (self.git_dir / "index").exists() and not self._run("ls-files", "-s", "--", "train.py")[0]

    def _results(self) -> bytes:
        path = self.root / "results.tsv"
        return path.read_bytes() if path.exists() else b""

    # -- git ------------------------------------------------------------------------------------------------------

    def _resolve(self, name: str) -> str:
        """An object's id, or "" where git has no such object."""
        return self._run("rev-parse", "-q", "--verify", name)[1].decode().strip()

    def _commit_id(self, name: str) -> str:
        """The whole id of a commit that a row names, or of its parent; "" where git has no such commit."""
        return self._resolve(f"{name}^{{commit}}") if re.fullmatch(r"[0-9a-f]{4,64}\^?", name) else ""

    def _ids(self, *names: str) -> list[str]:
        return self._git("rev-parse", *names).decode().split()

    def _show(self, commit: str, name: str) -> bytes:
        """A file as a commit holds it; empty where it does not."""
        return self._run("cat-file", "blob", f"{commit}:{name}")[1]

    def _git(self, *words: str, data: bytes | None = None, env: dict[str, str] | None = None) -> bytes:
        status, out, error = self._run(*words, data=data, env=env)
        if status:
            said = ledger.one_line(error.decode("utf-8", "replace"), 200) or f"exit status {status}"
            raise SetupError(f"git {words[0]} failed: {said}; put that right and start again, the session continues")
        return out

    def _run(self, *words: str, data: bytes | None = None,
             env: dict[str, str] | None = None) -> tuple[int, bytes, bytes]:
        """(exit status, stdout, stderr). In a session of its own, so that Ctrl-C does not cut it in half."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with tempfile.TemporaryFile() if data is not None else open(os.devnull, "rb") as stdin:
            if data is not None:
                stdin.write(data)
                stdin.seek(0)
            command = [self.repo.git.GIT_PYTHON_GIT_EXECUTABLE, *settings, *words]
            return self.repo.git.execute(
                command, istream=stdin, env=self._env | (env or {}),
                with_extended_output=True, with_exceptions=False, stdout_as_string=False, strip_newline_in_stdout=False,
                start_new_session=True)


# ---------------------------------------------------------------------------------------------------------------------
# Without git
# ---------------------------------------------------------------------------------------------------------------------


def _repository(root: Path) -> "git.Repo":  # noqa: F821
    try:
        import git
    except ImportError as error:  # it looks for the program when it is imported
        raise SetupError(f"git cannot be used ({ledger.one_line(str(error), 80)}): install git and gitpython") from None
    try:
        repo = git.Repo(root, expand_vars=False)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        raise SetupError(f"{root} is not the top of a git checkout: clone the project, or run "
                         "`git init && git add -A && git commit -m start` there") from None
    if repo.bare:
        raise SetupError(f"{root} is a bare git repository: start in a checkout of it")
    return repo


def _lock(git_dir: Path) -> int:
    """A descriptor whose lock the kernel drops when this process ends, however it ends."""
    try:
        lock_fd = os.open(git_dir / "autoresearch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(f"cannot write into {git_dir}: {error.strerror}; make it writable") from None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        raise SetupError("another agent is at work in this checkout: wait for it, or use a second clone") from None
    return lock_fd


def _git_at_work(root: Path, locks: list[Path]) -> bool:
    """Whether a git process works in this checkout; where none can be listed, whether a lock is young."""
    if not Path("/proc/self/cwd").exists():
        return any(time.time() - path.stat().st_mtime < LOCK_AGE_S for path in locks if path.exists())
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if not (process / "comm").read_text().startswith("git"):
                continue
            place = Path(os.readlink(process / "cwd"))
            if place.is_relative_to(root) or os.fsencode(root) in (process / "cmdline").read_bytes():
                return True
    return False


def _mend_head(git_dir: Path, common_dir: Path, results: Path) -> None:
    """Point an empty or damaged HEAD at the session that the last row belongs to; without HEAD git runs no command."""
    head = (git_dir / "HEAD").read_bytes()
    if head.startswith(b"ref: refs/") or OBJECT_ID.fullmatch(head):
        return
    lines = results.read_bytes().splitlines() if results.exists() else []
    commit = lines[-1].split(b"\t")[0] if len(lines) > 1 else b"none"
    refs = {path.parent.name: path.read_bytes() for path in (common_dir / "refs/autoresearch").glob("*/*")}
    packed = (common_dir / "packed-refs").read_bytes() if (common_dir / "packed-refs").exists() else b""
    refs |= {name.decode(): value for value, name in re.findall(rb"(?m)^(\w+) refs/autoresearch/([^/\n]+)/", packed)}
    tag = next((tag for tag, value in refs.items() if value.startswith(commit)), "")
    if not tag:
        raise SetupError(".git/HEAD is damaged: write `ref: refs/heads/NAME` into it, NAME the branch checked out")
    _write_durably(git_dir / "HEAD", f"ref: refs/heads/autoresearch/{tag}\n".encode())


def _closing_message(tag: str, rows: list[Row]) -> tuple[str, str]:
    """Subject and body of the closing commit: what the session brought."""
    history = ledger.experiments(rows)
    kept = [e for e in history if e.status == "keep" and e.val_bpb is not None]
    gain = f", val_bpb {kept[0].val_bpb:.6f} -> {kept[-1].val_bpb:.6f}" if kept else ""
    body = "\n".join(f"{e.number}: {e.val_bpb:.6f} {e.own.description}" for e in kept)
    return f"Close session {tag}: {len(history)} experiments, {len(kept)} kept{gain}", body


def _row_error(data: bytes) -> str:
    """What is wrong with the whole rows in `data`, or ""."""
    try:
        _parse(data)
    except SetupError as error:
        return str(error)
    return ""


def _parse(data: bytes) -> list[Row]:
    """Rows of a results.tsv that may exist only in git. Raises SetupError naming the line that is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.tsv"
        path.write_bytes(data)
        try:
            return ledger.read(path)
        except ValueError as error:
            raise SetupError(str(error)) from None


def _encode(code: str) -> bytes:
    return code.encode("utf-8", "surrogateescape")


def _decode(code: bytes) -> str:
    return code.decode("utf-8", "surrogateescape")


def _write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that a power cut leaves the old or the new one whole; it keeps its mode."""
    spare = path.with_name(f".{path.name}.new")
    with open(spare, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.chmod(spare, path.stat().st_mode & 0o7777)
    os.replace(spare, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
