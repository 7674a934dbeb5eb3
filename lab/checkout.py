"""git in one work tree: run its commands, hold the locks, build commits.

Promises: what a command writes is on the disk before the next one starts, no hook of the user takes
part, Ctrl-C reaches no command, and text from a model goes to git through stdin alone. It removes
the locks that a killed git leaves, and passes on what git says of other damage.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lab import sandbox
from lab.ledger import SetupError, one_line

SETTINGS = (
    "core.fsync=objects,reference,index", "core.fsyncMethod=fsync",  # for a power cut
    "core.hooksPath=/dev/null", "core.fsmonitor=false",  # a hook of the user could refuse a step
    "core.filesRefLockTimeout=3000", "core.packedRefsTimeout=3000",  # ms, for a git gc of the user
    "i18n.commitEncoding=UTF-8",
)
ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",  # `git status` then writes no index
    "GIT_AUTHOR_NAME": "autoresearch", "GIT_AUTHOR_EMAIL": "autoresearch@localhost",
    "GIT_COMMITTER_NAME": "autoresearch", "GIT_COMMITTER_EMAIL": "autoresearch@localhost",
}
OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
GIT_WAIT_S = 2.0      # for another git to end before the start is refused
LOCK_WAIT_S = 0.5     # a git that a killed agent had forked holds the agent's lock until its exec
FULL_BYTES = 1 << 16  # a disk with less free space is full
TEXT = ("utf-8", "surrogateescape")  # any bytes, and back


@dataclass(frozen=True)
class Checkout:
    """One work tree and its repository, held against a second agent until `release`."""

    root: Path
    git_dir: Path = Path()     # of this work tree
    common_dir: Path = Path()  # shared by all work trees: refs and objects
    locks: list[FileLock] = field(default_factory=list)

    @classmethod
    def open(cls, root: Path) -> "Checkout":
        """Find the repository and lock the work tree. Raises SetupError."""
        for name in OF_A_HOOK:  # of a hook that started this process
            os.environ.pop(name, None)
        here = cls(root.resolve())
        _, out, said = here.run("rev-parse", "--git-dir", "--git-common-dir", "--show-toplevel")
        places = [here.root.joinpath(line).resolve() for line in out.decode(*TEXT).splitlines()]
        if places[2:] != [here.root]:
            mend = "clone the project, or run `git init && git add -A && git commit -m start`"
            if (here.root / ".git").exists():
                mend = "mend that; an empty .git/HEAD needs `echo ref: refs/heads/BRANCH > .git/HEAD`"
            raise SetupError(f"git finds no checkout at {here.root} ({one_line(said, 200)}): {mend}")
        here = replace(here, git_dir=places[0], common_dir=places[1])
        if not here.lock(here.git_dir / "autoresearch.lock"):
            raise SetupError("another agent is at work in this checkout: wait, or use a second clone")
        return here

    def lock(self, path: Path) -> bool:
        """Lock a file until `release`; when this process dies, the kernel drops the lock."""
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path, LOCK_WAIT_S)
        try:
            lock.acquire()
        except Timeout:
            return False
        self.locks.append(lock)
        return True

    def release(self) -> None:
        for lock in self.locks:
            lock.release()

    def clear_locks(self, *of_refs: str) -> list[str]:
        """Remove the locks that a killed git left, a line for each. Raises while a git works."""
        left = [*self.git_dir.glob("index.lock"), *self.git_dir.glob("HEAD.lock")]
        for pattern in ("packed-refs.lock", "packed-refs.new", *of_refs):
            left += self.common_dir.glob(pattern)
        running = psutil.process_iter(["name", "cwd"]) if left else ()
        wanted = {"name": "git", "cwd": str(self.root)}
        gits = [process for process in running if process.info == wanted]
        if psutil.wait_procs(gits, GIT_WAIT_S)[1]:
            raise SetupError("another git command is at work here: let it end, then start again")
        for path in left:
            path.unlink(missing_ok=True)
        return [f"removed {path.name}, which a killed git had left" for path in left]

    def run(self, *words: str, data: bytes = b"") -> tuple[int, bytes, str]:
        """(exit status, stdout, stderr), in a session of its own, which Ctrl-C does not reach."""
        try:
            import git
        except ImportError:  # it looks for the program when it is imported
            raise SetupError("git cannot be used: install git and gitpython") from None
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with tempfile.TemporaryFile() as stdin, sandbox.CHILDREN:
            stdin.write(data)
            stdin.seek(0)
            return git.Git(self.root).execute(
                ["git", *settings, *words], istream=stdin, env=ENVIRONMENT, start_new_session=True,
                with_extended_output=True, with_exceptions=False, stdout_as_string=False,
                strip_newline_in_stdout=False)

    def git(self, *words: str, data: bytes = b"") -> str:
        """What a command prints. Raises SetupError with git's own words; OSError for a full disk."""
        status, out, said = self.run(*words, data=data)
        if not status:
            return out.decode(*TEXT).rstrip("\n")
        full = os.strerror(errno.ENOSPC)  # git does not always say it
        if full in said or os.strerror(errno.EDQUOT) in said or shutil.disk_usage(self.common_dir).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, full)
        raise SetupError(f"git {words[0]} failed ({one_line(said, 200) or status}): mend that (`git fsck` "
                         "lists lost objects), then start again: the session continues")

    def resolve(self, name: str) -> str:
        """An object's id, or "" where git has no such object."""
        return self.run("rev-parse", "-q", "--verify", name)[1].decode().strip()

    def show(self, name: str) -> bytes:
        """A file of a commit ("HEAD:train.py") or of the index (":train.py"), or b""."""
        return self.run("cat-file", "blob", name)[1]

    def head(self) -> str:
        """The ref that HEAD names, even where it is gone; a commit where HEAD is detached."""
        return (self.git_dir / "HEAD").read_text("utf-8", "replace").strip().removeprefix("ref: ")

    def contains(self, descendant: str, commit: str) -> bool:
        return not self.run("merge-base", "--is-ancestor", commit, descendant)[0]

    def move(self, ref: str, commit: str, before: str) -> None:
        """Point a ref at another commit. Raises SetupError where it is not `before`."""
        self.git("update-ref", "-m", "autoresearch", ref, commit, before)

    def changes(self) -> set[str]:
        """Names of tracked files that differ from HEAD, in the work tree or in the index."""
        options = ("-z", "--untracked-files=no", "--no-renames", "--ignore-submodules=dirty")
        entries = self.git("status", "--porcelain", *options).split("\0")
        return {entry[3:] for entry in entries if entry}

    def tree(self, base: str, files: Mapping[str, bytes]) -> str:
        """The tree of `base` with these files in place. They keep their modes and pass no filter."""
        lines = self.git("ls-tree", "-z", base).split("\0")[:-1]
        entries = {line.partition("\t")[2]: line for line in lines}
        for name, data in files.items():
            mode = entries.get(name, "100644").split()[0]
            blob = self.git("hash-object", "-w", "--stdin", data=data)
            entries[name] = f"{mode} blob {blob}\t{name}"
        return self.git("mktree", "-z", data="\0".join(entries.values()).encode(*TEXT))

    def commit(self, tree: str, parents: Iterable[str], subject: str, body: str = "") -> str:
        """A commit whose message is bounded and free of control characters; no ref moves."""
        lines = [one_line(subject, 200), "", *(one_line(line, 4000) for line in body.splitlines())]
        message = "\n".join(lines).strip().encode("utf-8", "replace") + b"\n"
        options = [word for parent in parents for word in ("-p", parent)]
        return self.git("commit-tree", tree, *options, data=message)
