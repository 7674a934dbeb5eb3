"""git in one work tree: run its commands, hold the locks, build commits, and say what is damaged.

Promises: what a command writes is on the disk before the next one starts, no hook and no cache of the user takes part,
Ctrl-C cuts no command in half, and text from a model reaches git through stdin alone. Knows nothing of sessions and
rows. It clears the locks that a killed git leaves; other damage is one line with the command that mends it.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import ledger
from lab.ledger import SetupError

SETTINGS = (
    "core.fsync=objects,reference,index", "core.fsyncMethod=fsync",  # a row must find its commit after a power cut
    "core.hooksPath=/dev/null",                                # a hook of the user could refuse a step
    "core.fsmonitor=false", "core.commitGraph=false",          # these caches can be stale or damaged
    "core.filesRefLockTimeout=3000", "core.packedRefsTimeout=3000",  # milliseconds, for a git gc of the user
    "gc.auto=0", "maintenance.auto=false",                     # packing would make a trial wait
    "i18n.commitEncoding=UTF-8",
)
GIT_WAIT_S = 2.0     # how long another git process may hold its lock before the start is refused
LOCK_WAIT_S = 0.5    # a git command that a killed agent was about to start inherits the lock until it has begun
LOCK_AGE_S = 60.0    # where processes cannot be listed (no /proc), an older lock of git counts as left behind
FULL_BYTES = 1 << 16  # a disk with less free space is full
MEND_OBJECTS = ("find {} -type f -empty -delete; git ls-files -z | xargs -0 git hash-object -w; git write-tree")


@dataclass
class Checkout:
    """One work tree and its repository, held against a second agent until `release`."""

    root: Path
    python: "git.Repo"       # noqa: F821  GitPython runs the commands
    git_dir: Path            # of this work tree
    common_dir: Path         # shared by all work trees: refs and objects
    lock_fds: list[int] = field(default_factory=list)
    _env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> "Checkout":
        """Lock the work tree and look for damage; nothing changes. Raises SetupError."""
        root = root.resolve()
        repo = _repository(root)
        checkout = cls(root, repo, Path(repo.git_dir).resolve(), Path(repo.common_dir).resolve())
        try:
            if not checkout.lock(checkout.git_dir / "autoresearch.lock"):
                raise SetupError("another agent is at work in this checkout: wait for it, or use a second clone")
            checkout._set_environment()
            checkout._refuse_damage()
        except SetupError:
            checkout.release()
            raise
        return checkout

    def release(self) -> None:
        """End git's helper processes and drop the locks."""
        self.python.close()
        while self.lock_fds:
            os.close(self.lock_fds.pop())

    def lock(self, path: Path) -> bool:
        """Lock a file until `release`; the kernel drops the lock when this process ends, however it ends."""
        try:
            path.parent.mkdir(exist_ok=True)
            lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SetupError(f"cannot write into {path.parent}: {error.strerror}; make it writable") from None
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock_fd)
                    return False
                time.sleep(0.02)
            else:
                self.lock_fds.append(lock_fd)
                return True

    def _set_environment(self) -> None:
        places = {
            "GIT_DIR": self.git_dir,
            "GIT_WORK_TREE": self.root,
            "GIT_INDEX_FILE": self.git_dir / "index",
            "GIT_COMMON_DIR": self.common_dir,
            "GIT_OBJECT_DIRECTORY": self.common_dir / "objects",
        }
        self._env = {name: str(path) for name, path in places.items() if name in os.environ}  # started from a hook
        self._env["GIT_OPTIONAL_LOCKS"] = "0"  # a look changes nothing
        if self.run("var", "GIT_COMMITTER_IDENT")[0]:
            for role in ("AUTHOR", "COMMITTER"):
                self._env[f"GIT_{role}_NAME"] = "autoresearch"
                self._env[f"GIT_{role}_EMAIL"] = "autoresearch@localhost"

    def _refuse_damage(self) -> None:
        """Raise SetupError, with the command that mends it, for what would make every later step fail."""
        index, objects = (os.path.relpath(path, self.root)
                          for path in (self.git_dir / "index", self.common_dir / "objects"))
        if not (self.git_dir / "index").exists() or self.run("ls-files", "-s")[0]:
            raise SetupError(f"git's index is damaged: run `rm -f {index} && git reset -q`, then start again")
        status, out, _ = self.run("ls-tree", "-r", "-l", "HEAD")
        if (status or b" BAD\t" in out) and self.resolve("HEAD^{commit}"):  # BAD: the size of a lost file
            raise SetupError("git has lost objects of the commit that is checked out: run "
                             f"`{MEND_OBJECTS.format(objects)}`, or restore .git from a backup, then start again")

    # -- commands

    def run(self, *words: str, data: bytes | None = None,
            env: dict[str, str] | None = None) -> tuple[int, bytes, str]:
        """(exit status, stdout, stderr). It runs in a process group of its own, which Ctrl-C does not reach."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with tempfile.TemporaryFile() if data is not None else open(os.devnull, "rb") as stdin:
            if data is not None:
                stdin.write(data)
                stdin.seek(0)
            command = [self.python.git.GIT_PYTHON_GIT_EXECUTABLE, *settings, *words]
            return self.python.git.execute(
                command, istream=stdin, env=self._env | (env or {}), with_extended_output=True,
                with_exceptions=False, stdout_as_string=False, strip_newline_in_stdout=False,
                start_new_session=True)

    def git(self, *words: str, data: bytes | None = None, env: dict[str, str] | None = None) -> bytes:
        """What a command prints. Raises SetupError with git's own words; OSError for a full disk."""
        status, out, error = self.run(*words, data=data, env=env)
        if not status:
            return out
        full = os.strerror(errno.ENOSPC)
        if full in error or shutil.disk_usage(self.common_dir).free < FULL_BYTES:  # git does not always say so
            raise OSError(errno.ENOSPC, full)
        said = ledger.one_line(error, 200) or f"exit status {status}"
        raise SetupError(f"git {words[0]} failed: {said}; put that right and start again, the session continues")

    def head(self) -> str:
        """The ref that HEAD names, also where that ref is gone; else a commit."""
        return (self.git_dir / "HEAD").read_text("utf-8", "replace").strip().removeprefix("ref: ")

    def resolve(self, name: str) -> str:
        """An object's id, or "" where git has no such object."""
        return self.run("rev-parse", "-q", "--verify", name)[1].decode().strip()

    def ids(self, *names: str) -> list[str]:
        """The ids of objects that must exist."""
        return self.git("rev-parse", *names).decode().split()

    def ids_of_many(self, names: Iterable[str]) -> dict[str, str]:
        """Object id by name, in one command; names that git does not know are left out."""
        names = list(names)
        lines = "".join(f"{name}\n" for name in names).encode()
        out = self.git("cat-file", "--batch-check=%(objectname)", data=lines).decode().splitlines()
        return {name: line for name, line in zip(names, out, strict=True) if " " not in line}

    def show(self, commit: str, name: str) -> bytes:
        """A file as a commit holds it; empty where it does not."""
        return self.run("cat-file", "blob", f"{commit}:{name}")[1]

    def refs(self, prefix: str, *options: str) -> dict[str, str]:
        """Commit by full name, of every ref below a prefix. Raises SetupError for one that git cannot read."""
        words = ("for-each-ref", *options, "--format=%(refname) %(objectname)", prefix)
        _, out, warning = self.run(*words)
        if warning:  # it ends with the ref's name
            broken = os.path.relpath(self.common_dir / warning.split()[-1], self.root)
            raise SetupError(f"{ledger.one_line(warning, 100)}: run `rm {broken}`, then start again")
        return dict(line.split() for line in out.decode("utf-8", "surrogateescape").splitlines())

    def changes(self, commit: str) -> set[str]:
        """Names of tracked files that differ from `commit`, in the work tree or in the index."""
        words = ("diff", "--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=dirty",
                 "--name-only", "-z")
        with tempfile.TemporaryDirectory() as folder:  # git diff writes what it learns into the index: use a copy
            env = {"GIT_INDEX_FILE": f"{folder}/index"}
            shutil.copy2(self.git_dir / "index", folder)  # with its time, by which git knows fresh entries
            out = self.git(*words, commit, "--", env=env)
            out += self.git(*words, "--cached", commit, "--", env=env)
        return {name.decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name}

    # -- commits without the index

    def tree(self, base: str, blobs: dict[str, str]) -> str:
        """The tree of `base` with these files in place."""
        entries = {}
        for line in self.git("ls-tree", "-z", base).split(b"\0")[:-1]:
            meta, name = line.split(b"\t", 1)
            entries[name] = meta
        for name, blob in blobs.items():
            mode = entries.get(name.encode(), b"100644").split()[0]
            entries[name.encode()] = mode + b" blob " + blob.encode()
        lines = b"".join(meta + b"\t" + name + b"\0" for name, meta in entries.items())
        return self.git("mktree", "-z", data=lines).decode().strip()

    def commit(self, tree: str, parents: list[str], subject: str, body: str = "") -> str:
        """A commit whose message is bounded and free of control characters; no ref moves."""
        lines = [ledger.one_line(subject, 200), ""]
        lines += [ledger.one_line(line, 4000) for line in body.splitlines()]
        message = "\n".join(lines).strip().encode("utf-8", "replace") + b"\n"
        options = [word for parent in parents for word in ("-p", parent)]
        return self.git("commit-tree", tree, *options, data=message).decode().strip()

    # -- after a kill

    def clear_locks(self, refs: Iterable[str]) -> list[str]:
        """Remove what a killed git left of its locks, once no git works in this repository; a line for each."""
        locks = [self.git_dir / "index.lock", self.git_dir / "HEAD.lock"]
        locks += [self.common_dir / "packed-refs.lock", self.common_dir / "packed-refs.new"]
        locks += [self.common_dir / f"{ref}.lock" for ref in refs]
        deadline = time.monotonic() + GIT_WAIT_S
        while (found := [path for path in locks if path.exists()]) and _git_at_work(self.root, found):
            if time.monotonic() > deadline:
                raise SetupError("another git command is at work in this repository: let it end, then start again")
            time.sleep(0.05)
        for path in found:
            path.unlink(missing_ok=True)
        return [f"removed {path.name}, which a killed git had left" for path in found]


def _repository(root: Path) -> "git.Repo":  # noqa: F821
    try:
        import git
    except ImportError as error:  # it looks for the program when it is imported
        said = ledger.one_line(str(error), 80)
        raise SetupError(f"git cannot be used ({said}): install git and gitpython") from None
    try:
        repo = git.Repo(root, expand_vars=False)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        if (root / ".git" / "objects").is_dir():
            raise SetupError(".git/HEAD is damaged: run `echo ref: refs/heads/BRANCH > .git/HEAD`, BRANCH being the "
                             "branch that was checked out (ls -t .git/logs/refs/heads/* names the last)") from None
        raise SetupError(f"{root} is not the top of a git checkout: clone the project, or run "
                         "`git init && git add -A && git commit -m start` there") from None
    if repo.bare:
        raise SetupError(f"{root} is a bare git repository: start in a checkout of it")
    return repo


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
