"""What a trial may touch: the last program that runs before train.py, and the sweep that runs after it.

As a program (`python -I -S sandbox.py SPEC COMMAND...`) it restricts itself and becomes the command. `level()` names
what this kernel lets it enforce:

    ns+landlock7      user, process, IPC, network and mount namespaces. The file system holds what SPEC names, nothing
                      else, read-only but for the trial's folder, its cache, and a /tmp and /dev/shm that end with it;
                      then Landlock and the filter of lab/syscalls.py as below.
    landlock7+filter  where namespaces are refused. Landlock: reads what SPEC names, writes its folder and cache alone,
                      no TCP, no signal to others. The filter: what Landlock does not know. No /dev/shm, and so no
                      POSIX semaphores: torch compiles in one process, data loaders have no workers.
    none              nothing but limits, the death of a trial with its parent, and the sweep.

A trial that cannot be restricted as its level says does not start. Not covered at any level: what the page cache and
the counters of the machine and its GPU tell. At the filter's level also not: access times, names and command lines in
/proc, and locks on readable files. The referee watches memory and processes: a limit on address space would break CUDA.
"""

import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# ---------------------------------------------------------------------------------------------------------------------
# What is allowed, decided by the trusted process that starts a trial.
# ---------------------------------------------------------------------------------------------------------------------

LEVEL_VARIABLE = "AUTORESEARCH_SANDBOX"  # of the trusted process: "filter" or "none" asks for no more than that level
# Patterns; no caches, archives, documentation, package manager or other program's data below them.
SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64",
          "/usr/libexec", "/usr/include", "/usr/local/bin", "/usr/local/lib", "/usr/local/lib64", "/usr/local/include",
          "/usr/local/nvidia", "/usr/local/cuda*", "/opt/cuda*", "/opt/rocm*", "/usr/share/zoneinfo", "/proc", "/sys")
SETTINGS = ("alternatives", "group", "host.conf", "hosts", "ld.so.*", "localtime", "mime.types", "nsswitch.conf",
            "nvidia", "os-release", "passwd")  # of /etc
OF_A_PREFIX = ("bin", "lib", "lib64", "libexec", "include", "nvvm", "targets", "pyvenv.cfg")  # of an interpreter
OTHER_PACKAGES = ("python*/site-packages", "python*/dist-packages")  # below a lib, hidden unless they are imported here
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/nvidia*", "/dev/dri",
           "/dev/kfd", "/dev/dxg")
MAX_FILE_BYTES = 16 * 10**9
PROBE_S = 20.0  # a probe takes 0.1 s
# Threads that wait asleep, but for some microseconds: spinning on, those of trial, referee and other programs slow each
# other many times on few cores. To sleep at once took 40 % of a CPU's step, which is hundreds of short operations.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
LIBRARIES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", *LIBRARIES, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS",
               "MKL_NUM_THREADS", "VIRTUAL_ENV", "CC", "CXX", "AUTORESEARCH_DEVICE")


def level() -> str:
    """What a trial's row says: the best of "ns+landlock7", "landlock7+filter" and "none" that works here."""
    return _level(os.environ.get(LEVEL_VARIABLE, ""))


@functools.cache
def _level(at_most: str) -> str:
    version = landlock_version()
    if version and at_most != "none":
        if at_most != "filter" and _works("ns"):
            return f"ns+landlock{version}"
        if _works("filter"):
            return f"landlock{version}+filter"
    return "none"


def _works(kind: str) -> bool:
    """Whether a Python starts, restricted so: the kernel is asked, not its settings."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        words = _command(kind, folder, folder, [sys.executable, "-I", "-S", "-c", ""], ())
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S).returncode == 0
    return False


def landlock_version() -> int:
    """The kernel's Landlock version; 0 where it has none, or where lab/syscalls.py does not know the processor."""
    from lab.syscalls import ARCHITECTURES

    known = sys.platform == "linux" and os.uname().machine in ARCHITECTURES
    return max(0, _libc.syscall(CREATE_RULESET, None, 0, 1)) if known else 0


def environment(folder: str, cache: str) -> dict[str, str]:
    """A trial's whole environment: a list of what is allowed, no key among it."""
    allowed = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if level().endswith("filter"):
        allowed["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its pool of processes needs a semaphore
    return allowed | THREADS | {
        "HOME": folder, "TMPDIR": folder, "USER": "trial", "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton",
        "CUDA_CACHE_PATH": f"{cache}/cuda"}


def command(folder: str, cache: str, program: list[str], hidden: Iterable[Path] = ()) -> list[str]:
    """The command line that runs `program` in `folder`, restricted; `hidden` folders cannot be read."""
    kind = level()
    return _command("ns" if kind.startswith("ns") else "none" if kind == "none" else "filter", folder, cache, program,
                    hidden)


def _command(kind: str, folder: str, cache: str, program: list[str], hidden: Iterable[Path]) -> list[str]:
    spec = {"parent": os.getpid(), "kind": kind}
    if kind != "none":
        from lab import syscalls

        readable, others, links = _machine()
        spec |= {"filter": syscalls.program(os.uname().machine, private=kind == "ns").hex(), "readable": readable,
                 "hidden": _outermost([*map(os.path.realpath, hidden), *others]), "devices": _existing(DEVICES),
                 "folder": os.path.realpath(folder), "cache": os.path.realpath(cache),
                 "links": links | _links([folder, cache])}
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps(spec), *program]


def exposed(paths: Iterable[Path]) -> Path | None:
    """The first of these paths that every trial could read, since it lies below what trials need; None if none does."""
    readable, others, _ = _machine()
    for path in paths:
        real = os.path.realpath(path)
        if _below(real, readable) and not _below(real, others):
            return path
    return None


@functools.cache
def _machine() -> tuple[list[str], list[str], dict[str, str]]:
    """What any train.py may need of this machine: (readable files and folders, hidden ones below them, links to them).

    Hidden are packages that this interpreter does not import from: second copies, other versions.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    libraries = [path for name in LIBRARIES for path in os.environ.get(name, "").split(":")
                 if path.startswith("/") and os.path.exists(path)]
    paths = [*_existing(SYSTEM), *_existing(f"/etc/{name}" for name in SETTINGS),
             *_existing(f"{prefix}/{part}" for prefix in prefixes for part in OF_A_PREFIX), *libraries, sys.executable]
    packages = _existing(f"{folder}/{name}" for folder in paths for name in OTHER_PACKAGES)
    others = set(map(os.path.realpath, packages)) - set(map(os.path.realpath, sys.path))
    return _outermost(map(os.path.realpath, paths)), sorted(others), _links(paths)


def _existing(patterns: Iterable[str]) -> list[str]:
    import glob

    return sorted(path for pattern in patterns for path in glob.glob(pattern))


def _below(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths)):  # a folder sorts before what is in it
        if not _below(path, kept):
            kept.append(path)
    return kept


def _links(paths: Iterable[str]) -> dict[str, str]:
    """Every symbolic link that is met on the way along these paths: where it really is, and what it says."""
    found: dict[str, str] = {}
    for path in paths:
        at, parts = "", os.path.abspath(path).split("/")
        while parts:
            part = parts.pop(0)
            step = os.path.dirname(at) if part == ".." else f"{at}/{part}" if part not in ("", ".") else at
            if not os.path.islink(step):
                at = step
                continue
            target = found[step] = os.readlink(step)
            at, parts = "" if target.startswith("/") else at, target.split("/") + parts
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The program that restricts itself and becomes the trial. Landlock (kernel documentation: userspace-api/landlock),
# namespaces and mounts by their system calls: there is no maintained package.
# ---------------------------------------------------------------------------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF, MOUNT_SETATTR = 444, 445, 446, 442  # the same numbers on every architecture
SECCOMP, PIVOT_ROOT = (277, 41) if os.uname().machine == "aarch64" else (317, 155)
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18, 2
ATTR_RDONLY, ATTR_NOSUID, AT_FDCWD, AT_RECURSIVE = 1, 2, -100, 0x8000
TMPFS_SIZE = "size=25%,mode=1777"  # of the machine's memory, which the referee watches
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many file-system rights a version knows

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function, *args) -> int:
    result = function(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _call(_libc.prctl, option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def main() -> None:
    spec, program = json.loads(sys.argv[1]), sys.argv[2:]
    die_with_parent(spec["parent"], signal.SIGKILL)
    _limit_oneself()
    if spec["kind"] == "ns":
        _move_into_namespaces(spec)  # from here on this is another process
    if sys.platform == "linux":
        _prctl(PR_SET_NO_NEW_PRIVS, 1)  # Landlock asks for it, and exec gives no capability back
        _drop_capabilities()
    if spec["kind"] != "none":
        _restrict_files(spec)
        _filter_calls(bytes.fromhex(spec["filter"]))
    os.execv(program[0], program)


def _limit_oneself() -> None:
    import resource

    for kind, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, MAX_FILE_BYTES)):
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as f:  # macOS has none
        f.write("1000")  # when memory runs out, the trial goes first


def _drop_capabilities() -> None:
    """Make root a user like any other: CAP_PERFMON alone reads every process's /proc entries past Landlock."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(_libc.capset, header, (ctypes.c_uint32 * 6)())


def _restrict_files(spec: dict) -> None:
    """Landlock: the paths that can be read and written; no TCP, no signal and no abstract socket to the outside."""
    version = max(0, _libc.syscall(CREATE_RULESET, None, 0, 1))
    rights = (1 << RIGHTS_BY_VERSION.get(version, 16)) - 1
    net = 0b11 if version >= 4 else 0     # bind and connect TCP
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals of processes outside
    attributes = (ctypes.c_uint64 * 3)(rights, net, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_libc.syscall, CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    private, hidden = ((), spec["hidden"]) if spec["kind"] == "filter" else (("/tmp", "/dev/shm"), ())  # or by mounts
    allowed = [(path, rights) for path in (spec["folder"], spec["cache"], *spec["devices"], *private)]
    for root in spec["readable"]:
        allowed += _readable_parts(root, hidden)
    for path, access in allowed:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # not there, or closed anyway
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access &= rights & (~0 if os.path.isdir(path) else FILE_ONLY)
            rule = access.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
            _call(_libc.syscall, ADD_RULE, ruleset, 1, rule, 0)
            os.close(fd)
    _call(_libc.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _readable_parts(path: str, hidden: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Rules, (path, rights), for all below `path` but what is hidden, of which only names can be listed."""
    inside = [folder for folder in hidden if _below(folder, [path])]
    if path in inside:
        return
    yield path, READ_DIR if inside else READ
    if inside:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_symlink():  # a rule for a link would be one for its target
                    yield from _readable_parts(entry.path, inside)


def _filter_calls(program: bytes) -> None:
    """Put the filter of lab/syscalls.py in force; without SPEC_ALLOW kernels before 5.16 slow the whole process."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(buffer))  # struct sock_fprog, little endian
    _call(_libc.syscall, SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, header)


def _move_into_namespaces(spec: dict) -> None:
    """Return in a grandchild that has namespaces and a file system of its own.

    The process that was started stays outside and ends as the grandchild ends. Its child is process 1 of the inside:
    it collects what others leave, and when it ends, the kernel kills everything that is inside.
    """
    told, tells = os.pipe()
    uid, gid = os.getuid(), os.getgid()
    _call(_libc.unshare, CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    outside = os.pidfd_open(os.getpid())
    if first := os.fork():
        _let_go(told)
        _, status = os.waitpid(first, 0)
        report = os.read(told, 4)
        _end_like(int.from_bytes(report, "little") if report else status)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([outside], [], [], 0)[0]:  # it ended before that call
        os._exit(1)
    _make_root(spec)
    _drop_capabilities()
    hide()
    if grandchild := os.fork():
        _let_go(tells)
        ended = 0
        while ended != grandchild:
            ended, status = os.wait()
        os.write(tells, status.to_bytes(4, "little"))
        os._exit(0)


def _let_go(kept: int) -> None:
    """Close all descriptors but one: who waits here must not keep open what the trial closes."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != kept:
            with contextlib.suppress(OSError):  # the one that listed the folder
                os.close(fd)
    _drop_capabilities()


def _end_like(status: int) -> None:
    """End with the exit code, or by the signal, of a wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _make_root(spec: dict) -> None:
    """Give this process a file system of what `spec` names: the rest of the machine's is not there."""
    writable = ["/tmp", "/dev/shm", *_outermost([spec["folder"], spec["cache"]])]
    _call(_libc.unshare, CLONE_NEWNS)
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    os.mkdir("/tmp/old")
    _call(_libc.syscall, PIVOT_ROOT, b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path in ("/empty", "/proc", "/dev", *writable[:2]):
        os.mkdir(path)
    for path in writable[:2]:
        _mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, TMPFS_SIZE)
    for place, target in (*spec["links"].items(), ("/dev/fd", "/proc/self/fd")):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(target, place)
    for path in [*spec["readable"], *spec["devices"], *writable[2:]]:
        if path != "/proc":
            _bind("/old" + path, path)
    for path in spec["hidden"]:
        if os.path.isdir(path):
            _bind("/empty", path)
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _call(_libc.umount2, b"/old", MNT_DETACH)
    os.rmdir("/old")
    _set_attributes("/", ATTR_RDONLY | ATTR_NOSUID, 0, AT_RECURSIVE)
    for path in writable:
        _set_attributes(path, 0, ATTR_RDONLY)
    os.chdir(spec["folder"])


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call(_libc.mount, *map(os.fsencode, (source, target, kind)), ctypes.c_ulong(flags), options.encode())


def _bind(source: str, target: str) -> None:
    """Have `target` show `source`, a file or a folder, and what is mounted below it."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif os.path.exists(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    else:
        return
    _mount(source, target, "", MS_BIND | MS_REC)


def _set_attributes(path: str, on: int, off: int, flags: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(on, off, 0, 0)  # struct mount_attr
    _call(_libc.syscall, MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(32))


# ---------------------------------------------------------------------------------------------------------------------
# Processes of a trial, and files that it left in its cache.
# ---------------------------------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies, so that sweep() finds them all."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def hide() -> None:
    """Close this process's /proc entries (environment, memory) to every other process of the user."""
    _prctl(PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int, signal_number: int) -> None:
    _prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def descendants(root: int) -> list[int]:
    """Process numbers of every living descendant of `root`, nearest first."""
    if sys.platform != "linux":
        return _descendants_elsewhere(root)
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = _state(f"/proc/{name}/stat")
                if state != b"Z" or _has_living_thread(name):
                    children.setdefault(int(parent), []).append(int(name))
    found = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def _state(path: str) -> list[bytes]:
    """[state, parent] of a process or thread."""
    with open(path, "rb") as f:
        return f.read().rpartition(b")")[2].split()[:2]


def _has_living_thread(pid: str) -> bool:
    """Whether a process whose first thread has ended goes on in others."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            if _state(f"/proc/{pid}/task/{thread}/stat")[0] not in (b"Z", b"X"):
                return True
    return False


def _descendants_elsewhere(root: int) -> list[int]:
    """By psutil, where there is no /proc; a process whose parent has ended is nobody's descendant there."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [process.pid for process in psutil.Process(root).children(recursive=True)
                if process.status() != psutil.STATUS_ZOMBIE]
    return []


def sweep(deadline_s: float = 10.0) -> int:
    """Kill every descendant of this process until none is left; return how many there were."""
    killed: set[int] = set()
    until = time.monotonic() + deadline_s
    while (alive := set(descendants(os.getpid()))) and time.monotonic() < until:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= alive
        time.sleep(0.001)
    for pid in killed:  # collect those that were left to us; the others have a parent to do it
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return len(killed)


def copy_plain(source: Path, target: Path, max_files: int, max_bytes: int, max_depth: int) -> str:
    """Copy the regular files below `source`, where a trial that has ended wrote; "", or why not.

    Links of either kind, pipes, sockets and devices are left out. With a reason `target` is left empty.
    """
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    try:
        reason = _copy_plain(str(source), str(target), max_files, max_bytes, max_depth)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    if reason:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
    return reason


def _copy_plain(source: str, target: str, max_files: int, max_bytes: int, max_depth: int) -> str:
    if os.path.islink(source):
        return f"{source} is a link"
    n_files = n_bytes = 0
    for folder, folders, names in os.walk(source, onerror=_raise):  # it follows no link below its start
        inner = os.path.relpath(folder, source)
        n_files += len(folders) + len(names)
        if n_files > max_files:
            return f"more than {max_files} files and folders"
        if inner != "." and inner.count("/") >= max_depth:
            return f"more than {max_depth} folders deep"
        os.makedirs(os.path.join(target, inner), exist_ok=True)
        for name in names:
            facts = os.lstat(os.path.join(folder, name))
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
                continue
            n_bytes += facts.st_size
            if n_bytes > max_bytes:
                return f"more than {max_bytes} bytes"
            with open(os.path.join(folder, name), "rb") as old, open(os.path.join(target, inner, name), "wb") as new:
                new.write(old.read())
    return ""


def _raise(error: OSError) -> None:
    raise error


if __name__ == "__main__":
    main()
