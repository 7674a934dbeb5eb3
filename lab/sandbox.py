"""What a trial may touch: the last program that runs before train.py, and the sweep that runs after it.

As a program (`python -I -S sandbox.py SPEC COMMAND...`) it restricts itself and becomes the command: a process started
this way cannot outlive its parent, write outside its folder, read beyond the interpreter's own files, open a TCP
connection or signal a process outside. Restricting in a fresh exec, not in a fork, is safe beside threads.
Where the kernel has no Landlock, `level()` says "none" and the rest still holds. UDP stays open; memory and the number
of processes are watched by the referee, since a limit on address space would break CUDA.

Landlock by its three system calls (kernel documentation: userspace-api/landlock); there is no maintained package.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many file-system rights a version knows
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", "/opt/cuda")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm", "/dev/nvidiactl",
           "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-caps", "/dev/dri", "/dev/dxg",
           *(f"/dev/nvidia{i}" for i in range(16)))
MAX_FILE_BYTES = 16 * 10**9
# Threads that wait asleep, but for some microseconds: spinning on, those of trial, referee and other programs slow each
# other many times on few cores. To sleep at once took 40 % of a CPU's step, which is hundreds of short operations.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
               "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VIRTUAL_ENV", "CC", "CXX", "AUTORESEARCH_DEVICE")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function, *args) -> int:
    result = function(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _call(_libc.prctl, option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def landlock_version() -> int:
    """The kernel's Landlock version, 0 where it has none."""
    return max(0, _libc.syscall(CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def level() -> str:
    """What a trial's row says: "landlock6", or "none"."""
    version = landlock_version()
    return f"landlock{version}" if version else "none"


def environment(folder: str, cache: str) -> dict[str, str]:
    """A trial's whole environment: a list of what is allowed, no key among it."""
    allowed = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return allowed | THREADS | {
        "HOME": folder, "TMPDIR": folder, "USER": "trial", "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton",
        "CUDA_CACHE_PATH": f"{cache}/cuda"}


def _restrict(readable: list[str], writable: list[str], version: int) -> None:
    rights = (1 << RIGHTS_BY_VERSION.get(version, 16)) - 1
    net = 0b11 if version >= 4 else 0     # bind and connect TCP
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals of processes outside
    attributes = (ctypes.c_uint64 * 3)(rights, net, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_libc.syscall, CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    for paths, access in ((readable, READ), (writable, rights)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except (FileNotFoundError, PermissionError):
                continue  # this machine has no such folder or device: nothing to allow
            allowed = access & rights & (~0 if os.path.isdir(path) else FILE_ONLY)
            rule = allowed.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
            _call(_libc.syscall, ADD_RULE, ruleset, 1, rule, 0)
            os.close(fd)
    _call(_libc.syscall, RESTRICT_SELF, ruleset, 0)


def _drop_capabilities() -> None:
    """Make root a user like any other: CAP_PERFMON alone reads every process's /proc entries past Landlock."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(_libc.capset, header, (ctypes.c_uint32 * 6)())


def command(folder: str, cache: str, program: list[str]) -> list[str]:
    """The command line that runs `program` in `folder`, restricted."""
    readable = [*SYSTEM_FOLDERS, sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    spec = {"parent": os.getpid(), "readable": readable, "writable": [folder, cache, *DEVICES]}
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps(spec), *program]


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
    """Process numbers of every living descendant of `root`, nearest first (Linux; elsewhere none are seen)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as f:
                state, parent = f.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    children.setdefault(int(parent), []).append(int(name))
    found = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def sweep(deadline_s: float = 5.0) -> int:
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


def shared_files() -> set[str]:
    """Names of this user's files in shared memory, the one place beside its folder where a trial may write."""
    with contextlib.suppress(OSError), os.scandir("/dev/shm") as entries:
        return {entry.path for entry in entries if entry.stat(follow_symlinks=False).st_uid == os.getuid()}
    return set()


def clear_shared(before: set[str]) -> None:
    """Delete what came into shared memory since and no process uses: nothing in it reaches the next trial."""
    if left := shared_files() - before:
        used = {path for pid in os.listdir("/proc") if pid.isdigit() for path in _open_files(pid)}
        import subprocess

        for path in left - used:
            subprocess.run(["rm", "-rf", "--", path], check=False)


def _open_files(pid: str) -> set[str]:
    """Paths that a process has mapped or open; none of one that ends meanwhile or is somebody else's."""
    found = set()
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/maps", "rb") as f:
            found |= {os.fsdecode(line.split(maxsplit=5)[5].rstrip(b"\n")) for line in f if line.count(b"/dev/shm/")}
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def main() -> None:
    spec, program = json.loads(sys.argv[1]), sys.argv[2:]
    die_with_parent(spec["parent"], signal.SIGKILL)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as f:  # macOS has none
        f.write("1000")  # when memory runs out, the trial goes first
    if sys.platform == "linux":
        _prctl(PR_SET_NO_NEW_PRIVS, 1)  # Landlock asks for it, and exec gives no capability back
        if version := landlock_version():
            _restrict(spec["readable"], spec["writable"], version)
        _drop_capabilities()
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
