"""git in one checkout: run its commands, hold the lock against a second agent, and see past damage.

Promises: what a command writes is on the disk before the next one starts (as far as git can be told), no hook or cache
of the user takes part, Ctrl-C cuts no command in half, and text from a model travels through stdin alone. Knows nothing
of sessions and rows, but for one case: without a HEAD git runs no command, and the last row says what HEAD was.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import ledger
from lab.ledger import SetupError, write_durably

SETTINGS = (
    "core.fsync=objects,reference", "core.fsyncMethod=fsync",  # what the row relies on is on the disk before it
    "core.hooksPath=/dev/null",                                # the user's hooks would see, and may refuse, every step
    "core.fsmonitor=false", "core.commitGraph=false",          # caches that can be stale or damaged
    "core.filesRefLockTimeout=3000", "core.packedRefsTimeout=3000",  # milliseconds: a git gc of the user may be at work
    "gc.auto=0", "maintenance.auto=false",                     # nothing is packed or pruned while a trial waits
    "i18n.commitEncoding=UTF-8",
)
GIT_WAIT_S = 2.0     # for another git process to end before its lock is called in use
LOCK_WAIT_S = 0.5    # for a git command that a killed agent was about to start: it holds the lock until it has begun
LOCK_AGE_S = 60.0    # where processes cannot be listed (no /proc), an older lock counts as left behind
FULL_BYTES = 1 << 16  # less is left on a disk that is full
OBJECT_ID = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?\s*")


@dataclass
class Checkout:
    """One work tree and its repository, held against a second agent until `release`."""

    root: Path
    python: "git.Repo"       # noqa: F821  GitPython's view, used to run commands
    git_dir: Path            # of this work tree
    common_dir: Path         # shared by all work trees: refs and objects
    lock_fd: int
    mended: list[str] = field(default_factory=list)  # what had to be mended for git to read it, a line each
    _env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> "Checkout":
        """Lock the checkout, and mend what keeps git from reading it; nothing else changes. Raises SetupError."""
        root = root.resolve()
        _mend_head(root)
        repo = _repository(root)
        with ExitStack() as undo:
            undo.callback(repo.close)
            git_dir = Path(repo.git_dir).resolve()
            lock_fd = _lock(git_dir)
            undo.callback(os.close, lock_fd)
            checkout = cls(root, repo, git_dir, Path(repo.common_dir).resolve(), lock_fd)
            checkout._set_environment()
            checkout._mend_objects()
            undo.pop_all()
        return checkout

    def release(self) -> None:
        """Let go of git's helpers and of the checkout."""
        self.python.close()
        os.close(self.lock_fd)

    def _set_environment(self) -> None:
        places = {"GIT_DIR": self.git_dir, "GIT_WORK_TREE": self.root, "GIT_INDEX_FILE": self.git_dir / "index",
                  "GIT_COMMON_DIR": self.common_dir, "GIT_OBJECT_DIRECTORY": self.common_dir / "objects"}
        self._env = {name: str(path) for name, path in places.items() if name in os.environ}  # started from a hook
        self._env["GIT_OPTIONAL_LOCKS"] = "0"  # looking changes nothing
        if self.run("var", "GIT_COMMITTER_IDENT")[0]:
            for role in ("AUTHOR", "COMMITTER"):
                self._env |= {f"GIT_{role}_NAME": "autoresearch", f"GIT_{role}_EMAIL": "autoresearch@localhost"}

    def run(self, *words: str, data: bytes | None = None,
            env: dict[str, str] | None = None) -> tuple[int, bytes, str]:
        """(exit status, stdout, stderr). In a session of its own, so that Ctrl-C does not cut it in half."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with tempfile.TemporaryFile() if data is not None else open(os.devnull, "rb") as stdin:
            if data is not None:
                stdin.write(data)
                stdin.seek(0)
            command = [self.python.git.GIT_PYTHON_GIT_EXECUTABLE, *settings, *words]
            return self.python.git.execute(
                command, istream=stdin, env=self._env | (env or {}), with_extended_output=True, with_exceptions=False,
                stdout_as_string=False, strip_newline_in_stdout=False, start_new_session=True)

    def git(self, *words: str, data: bytes | None = None, env: dict[str, str] | None = None) -> bytes:
        """What a command prints. Raises SetupError, with git's own words, where it fails; OSError for a full disk."""
        status, out, error = self.run(*words, data=data, env=env)
        full = os.strerror(errno.ENOSPC)  # which git does not always say
        if status and (full in error or shutil.disk_usage(self.common_dir).free < FULL_BYTES):
            raise OSError(errno.ENOSPC, full)
        if status:
            said = ledger.one_line(error, 200) or f"exit status {status}"
            raise SetupError(f"git {words[0]} failed: {said}; put that right and start again, the session continues")
        return out

    def resolve(self, name: str) -> str:
        """An object's id, or "" where git has no such object."""
        return self.run("rev-parse", "-q", "--verify", name)[1].decode().strip()

    def commit_id(self, name: str) -> str:
        """The whole id of a commit that a row names, or of its parent; "" where git has no such commit."""
        return self.resolve(f"{name}^{{commit}}") if re.fullmatch(r"[0-9a-f]{4,64}\^?", name) else ""

    def ids(self, *names: str) -> list[str]:
        """The ids of objects that must exist."""
        return self.git("rev-parse", *names).decode().split()

    def show(self, commit: str, name: str) -> bytes:
        """A file as a commit holds it; empty where it does not."""
        return self.run("cat-file", "blob", f"{commit}:{name}")[1]

    def index_sound(self) -> bool:
        """Whether git's index is whole, by the checksum at its end, which git itself does not verify."""
        path = self.git_dir / "index"
        data = path.read_bytes() if path.exists() else b""
        ends = [(hashlib.sha1(data[:-20]).digest(), data[-20:]), (hashlib.sha256(data[:-32]).digest(), data[-32:])]
        return data[:4] == b"DIRC" and any(found in (end, bytes(len(end))) for end, found in ends)  # 0: index.skipHash

    def changes(self, commit: str) -> set[str]:
        """Names of tracked files that differ from `commit`, in the work tree or in the index."""
        plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=dirty", "--name-only",
                 "-z")
        with tempfile.TemporaryDirectory() as folder:  # git diff writes what it learns into the index: a copy of it
            env = {"GIT_INDEX_FILE": f"{folder}/index"}
            if self.index_sound():
                shutil.copy2(self.git_dir / "index", folder)  # with its time, by which git knows fresh entries
            else:
                self.git("read-tree", commit, env=env)
            out = self.git(*plain, commit, "--", env=env) + self.git(*plain, "--cached", commit, "--", env=env)
        return {name.decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name}

    def clear_locks(self, refs: Iterable[str]) -> list[str]:
        """Remove what a killed git left of its locks on index, HEAD and `refs`, once no git works in the repository."""
        locks = [self.git_dir / "index.lock", self.git_dir / "HEAD.lock", self.common_dir / "packed-refs.lock",
                 self.common_dir / "packed-refs.new", *(self.common_dir / f"{ref}.lock" for ref in refs)]
        deadline = time.monotonic() + GIT_WAIT_S
        while (found := [path for path in locks if path.exists()]) and _git_at_work(self.root, found):
            if time.monotonic() > deadline:
                raise SetupError("another git command is at work in this repository: let it end, then start again")
            time.sleep(0.05)
        for path in found:
            path.unlink(missing_ok=True)
        return [f"removed {path.name}, which a killed git had left" for path in found]

    def rebuild_index(self, commit: str) -> None:
        (self.git_dir / "index").unlink(missing_ok=True)
        self.git("read-tree", commit)

    def restore_ref(self, ref: str, commit: str) -> None:
        (self.common_dir / ref).unlink(missing_ok=True)  # else the ref's log would name a commit that is not there
        self.git("update-ref", "-m", "autoresearch: recovered", ref, commit)

    def _mend_objects(self) -> None:
        """Remove object and ref files that hold nothing, as a power cut leaves them: git stumbles over each.

        What HEAD's tree then lacks is written again, as far as the work tree and the index still hold it.
        """
        objects = [Path(entry.path) for folder in (self.common_dir / "objects").glob("[0-9a-f][0-9a-f]")
                   for entry in os.scandir(folder) if not entry.stat().st_size]
        refs = [path for folder in ("refs/heads/autoresearch", "refs/autoresearch")
                for path in (self.common_dir / folder).rglob("*")
                if path.is_file() and path.suffix != ".lock" and not OBJECT_ID.fullmatch(path.read_bytes())]
        for path in objects + refs:
            path.unlink()
        self.mended = [f"removed {path.relative_to(self.common_dir)}, which held nothing" for path in objects + refs]
        if b"?" in self.run("rev-list", "--objects", "--no-object-names", "--missing=print", "HEAD^{tree}")[1]:
            names = [name for name in self.git("ls-files", "-z").decode("utf-8", "surrogateescape").split("\0")
                     if name and "\n" not in name and (self.root / name).is_file()]
            for filters in ((), ("--no-filters",)):
                self.git("hash-object", "-w", *filters, "--stdin-paths", data=encode("\n".join(names)))
            self.run("write-tree")
            self.mended.append("wrote objects again that git had lost")


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
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock_fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock_fd)
                raise SetupError("another agent is at work in this checkout: wait for it, "
                                 "or use a second clone") from None
            time.sleep(0.02)


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


def _mend_head(root: Path) -> None:
    """Point an empty or damaged HEAD at the session of the last row; without it git sees no repository at all."""
    git_dir, results = root / ".git", root / "results.tsv"
    head = (git_dir / "HEAD").read_bytes() if (git_dir / "HEAD").is_file() else b"ref: refs/"
    if head.startswith(b"ref: refs/") or OBJECT_ID.fullmatch(head):
        return
    lines = results.read_bytes().splitlines() if results.exists() else []
    commit = lines[-1].split(b"\t")[0] if len(lines) > 1 else b"none"
    refs = [(path.parent.name, path.read_bytes()) for path in (git_dir / "refs/autoresearch").glob("*/*")]
    packed = (git_dir / "packed-refs").read_bytes() if (git_dir / "packed-refs").exists() else b""
    refs += [(tag.decode(), value) for value, tag in re.findall(rb"(?m)^(\w+) refs/autoresearch/([^/\n]+)/", packed)]
    tag = next((tag for tag, value in refs if value.startswith(commit)), "")
    if not tag:
        raise SetupError(".git/HEAD is damaged: write `ref: refs/heads/NAME` into it, NAME the branch checked out")
    lock_fd = _lock(git_dir)
    write_durably(git_dir / "HEAD", f"ref: refs/heads/autoresearch/{tag}\n".encode())
    os.close(lock_fd)


def encode(code: str) -> bytes:
    return code.encode("utf-8", "surrogateescape")


def decode(code: bytes) -> str:
    return code.decode("utf-8", "surrogateescape")
