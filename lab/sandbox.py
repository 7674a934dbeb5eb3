"""What a trial may touch, and the sweep after it; lab/restrict.py enforces it from inside.

    ns+landlock7      User, process, IPC, network and mount namespaces: the trial's file system holds what it needs,
                      read-only except its folder, its cache, and a /tmp and /dev/shm that end with it. Landlock and the
                      filter of lab/syscalls.py hold as well.
    landlock7+filter  Where namespaces are refused. Landlock: it reads what it needs, writes its folder and cache, has
                      no TCP and no signal to others. The filter: what Landlock does not know. There is no /dev/shm, so
                      no POSIX semaphore: torch compiles in one process, data loaders have no workers.
    none              Limits, the death of a trial with its parent, and the sweep.

Not covered at any level: what the page cache and the counters of the machine and its GPU tell. At the filter's level
also not: access times, names and command lines in /proc, locks on readable files, and a child that clears the signal at
its parent's death when agent and referee are killed together. The referee watches memory and processes: a limit on
address space would break CUDA.
"""

import contextlib
import functools
import glob
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

from lab import restrict, syscalls
from lab.ledger import SetupError, one_line
from lab.restrict import die_with_parent, hide  # noqa: F401  the trusted processes use them too

LEVEL_VARIABLE = "AUTORESEARCH_SANDBOX"  # "filter" or "none": no more than that level
# No caches, archives, documentation or other program's data lie below these patterns.
SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64",
          "/usr/libexec", "/usr/include", "/usr/local/bin", "/usr/local/lib", "/usr/local/lib64", "/usr/local/include",
          "/usr/local/nvidia", "/usr/local/cuda*", "/opt/cuda*", "/opt/rocm*", "/usr/share/zoneinfo", "/proc", "/sys")
SETTINGS = ("alternatives", "group", "host.conf", "hosts", "ld.so.*", "localtime", "mime.types", "nsswitch.conf",
            "nvidia", "os-release", "passwd")  # of /etc
OF_A_PREFIX = ("bin", "lib", "lib64", "libexec", "include", "nvvm", "targets", "pyvenv.cfg")
PACKAGES = ("python*/site-packages", "python*/dist-packages")  # below a lib
GPUS = ("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", *GPUS)
PROBE_S = 20.0  # a probe takes 0.1 s
# Idle threads spin for a millisecond, then sleep. If they spun on, those of trial, referee and other programs would
# slow each other down many times on few cores. With 30 microseconds they slept in every step: 40 % less speed.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
LIBRARIES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", *LIBRARIES, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS",
               "MKL_NUM_THREADS", "VIRTUAL_ENV", "CC", "CXX", "AUTORESEARCH_DEVICE")
PR_SET_CHILD_SUBREAPER = 36
# Held while the agent runs git or starts a referee: the sweep of one trial among several must not end these.
CHILDREN = threading.Lock()


def level() -> str:
    """What a trial's row says: the best level that works here."""
    version = restrict.landlock_version()
    names = {"ns": f"ns+landlock{version}", "filter": f"landlock{version}+filter"}
    return names.get(_kind(), "none")


def _kind() -> str:
    return best_kind(os.environ.get(LEVEL_VARIABLE) or "ns")


@functools.cache
def best_kind(at_most: str) -> str:
    """The best of "ns", "filter" and "none" under which a Python really starts. Raises SetupError."""
    if at_most not in ("ns", "filter", "none"):
        raise SetupError(f"{LEVEL_VARIABLE}={one_line(at_most, 40)} is no level: say filter or none, or unset it")
    known = restrict.landlock_version() and os.uname().machine in syscalls.ARCHITECTURES
    kinds = {"ns": ["ns", "filter"], "filter": ["filter"], "none": []}[at_most]
    for kind in kinds if known else []:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError, subprocess.SubprocessError):
            words = command(folder, folder, [sys.executable, "-I", "-S", "-c", ""], kind=kind)
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=True)
            return kind
    return "none"


def environment(folder: str, cache: str) -> dict[str, str]:
    """A trial's whole environment: a list of what is allowed, no key among it."""
    allowed = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if _kind() == "filter":
        allowed["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its pool of processes needs a semaphore
    return allowed | THREADS | {
        "HOME": folder, "TMPDIR": folder, "USER": "trial", "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton",
        "CUDA_CACHE_PATH": f"{cache}/cuda"}


def command(folder: str, cache: str, program: list[str], hidden: Iterable[Path] = (), kind: str = "") -> list[str]:
    """The command line that runs `program`, restricted; `hidden` folders and devices cannot be read.

    kind: "ns", "filter" or "none"; "" for what this machine can enforce.
    """
    kind = kind or _kind()
    spec = {"parent": os.getpid(), "kind": kind, "folder": os.path.realpath(folder)}
    if kind != "none":
        (readable, others), hidden = _machine(), [os.path.realpath(path) for path in hidden]
        is_open = kind == "filter" and restrict.landlock_version() < restrict.SIGNALS_FROM
        # Bound to a share of the cores, a trial stays there: the others belong to the trials beside it.
        is_bound = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < os.cpu_count()
        rules = syscalls.program(os.uname().machine, kind == "ns", is_bound,
                                 watchers=(os.getpid(), os.getppid()) if is_open else ())
        spec |= {"filter": rules.hex(), "readable": readable,
                 "hidden": _outermost([path for path in (*hidden, *others) if not path.startswith("/dev/")]),
                 "devices": _places(path for path in existing(DEVICES) if path not in hidden),
                 "writable": _places([folder, cache])}
    return [sys.executable, "-I", "-S", restrict.__file__, json.dumps(spec), *program]


def exposed(paths: Iterable[Path]) -> Path | None:
    """The first of these paths that lies below what every trial can read."""
    return next((path for path in paths if _below(os.path.realpath(path), _machine()[0])), None)


@functools.cache
def _machine() -> tuple[dict[str, str], list[str]]:
    """What any train.py may need: (places that it can read, hidden folders below them).

    Hidden are packages that this interpreter does not import from: second copies, other versions.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    libraries = [path for name in LIBRARIES for path in os.environ.get(name, "").split(":") if path.startswith("/")]
    paths = existing([*SYSTEM, *(f"/etc/{name}" for name in SETTINGS), *map(glob.escape, libraries), sys.executable,
                       *(f"{glob.escape(prefix)}/{part}" for prefix in prefixes for part in OF_A_PREFIX)])
    packages = existing(f"{glob.escape(folder)}/{name}" for folder in paths for name in PACKAGES)
    others = set(map(os.path.realpath, packages)) - set(map(os.path.realpath, sys.path))
    return _places(paths), sorted(others)


def existing(patterns: Iterable[str]) -> list[str]:
    return sorted(path for pattern in patterns for path in glob.glob(pattern))


def _below(path: str, roots: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{root}/") for root in roots)


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths)):  # a folder sorts before what is in it
        if not _below(path, kept):
            kept.append(path)
    return kept


def _places(paths: Iterable[str]) -> dict[str, str]:
    """The outermost of these paths and of what they link to, and what each really is."""
    spelled = [os.path.abspath(path) for path in paths]
    return {place: os.path.realpath(place) for place in _outermost([*spelled, *map(os.path.realpath, spelled)])}


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies: sweep() finds them all."""
    restrict.prctl(PR_SET_CHILD_SUBREAPER, 1)


def n_threads(pid: int) -> int:
    """Of a process. On Linux psutil would read them in a text that begins with the name the process gave itself."""
    if os.path.isdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            return os.stat(f"/proc/{pid}/task").st_nlink - 2  # a folder each
        return 0
    return psutil.Process(pid).num_threads()


def descendants(root: int) -> list[int]:
    """Process numbers of every living descendant of `root`."""
    return family(root)[0]


def family(root: int, but: Collection[int] = ()) -> tuple[list[int], list[int]]:
    """(living descendants of `root`, ended ones that nobody has collected), except `but` and its descendants."""
    if not os.path.isdir("/proc/self/task"):
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(root).children(recursive=not but)
            return [child.pid for child in found if child.pid not in but], []
        return [], []
    # Not by psutil, which takes ten times as long: a process that keeps forking would escape.
    children: dict[int, list[int]] = {}
    ended = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            children.setdefault(int(parent), []).append(pid)
            # A process whose first thread has ended looks like a zombie while others go on.
            if state == b"Z" and len(os.listdir(f"/proc/{pid}/task")) == 1:
                ended.add(pid)
    found = [pid for pid in children.get(root, ()) if pid not in but]
    for pid in found:
        found += children.get(pid, ())
    return [pid for pid in found if pid not in ended], [pid for pid in found if pid in ended]


def sweep(but: Collection[int] = (), deadline_s: float = 30.0) -> None:
    """Kill every descendant of this process until none is left, except `but` and its descendants.

    Raises OSError where some do not die: a driver may hold them. Nothing can be measured beside them.

    It binds them to this process's own core first: while it looks and kills, none of them runs, so one that keeps
    forking is caught. It reaps ended ones at once, since thousands of zombies would make each look too slow.
    """
    until, cores = time.monotonic() + deadline_s, None
    try:
        while True:
            alive, ended = family(os.getpid(), but)
            for pid in ended:
                with contextlib.suppress(ChildProcessError):  # another one's child
                    os.waitpid(pid, os.WNOHANG)
            if not alive:
                return
            if time.monotonic() > until:
                raise OSError(f"{len(alive)} processes of a trial do not die, {alive[0]} is one")
            if cores is None and hasattr(os, "sched_setaffinity"):
                cores = os.sched_getaffinity(0)
                os.sched_setaffinity(0, {max(cores)})
            for pid in alive:
                with contextlib.suppress(OSError):
                    if cores is not None:
                        os.sched_setaffinity(pid, {max(cores)})
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)  # in which they die
    finally:
        if cores is not None:
            os.sched_setaffinity(0, cores)


def copy_plain(source: Path, target: Path, max_files: int, max_bytes: int, max_depth: int) -> str:
    """Copy the regular files below `source`, where a trial that has ended wrote; "", or why not.

    Links of either kind, pipes, sockets and devices are left out. With a reason `target` is empty.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    n_files = n_bytes = 0
    try:
        for folder, folders, names in os.walk(source):  # it follows no link below its start
            inner = Path(folder).relative_to(source)
            facts = {name: os.lstat(os.path.join(folder, name)) for name in names}
            plain = [name for name, f in facts.items() if stat.S_ISREG(f.st_mode) and f.st_nlink == 1]
            n_files += len(folders) + len(names)
            n_bytes += sum(facts[name].st_size for name in plain)
            if source.is_symlink() or n_files > max_files or n_bytes > max_bytes or len(inner.parts) > max_depth:
                raise OSError(f"a link, or more than {max_files} files, {max_bytes} bytes or {max_depth} folders deep")
            (target / inner).mkdir(exist_ok=True)
            for name in plain:
                shutil.copyfile(os.path.join(folder, name), target / inner / name)
    except OSError as error:
        shutil.rmtree(target)
        target.mkdir()
        return str(error)
    return ""
