"""The last program before train.py: `python -I -S restrict.py SPEC COMMAND...` becomes the trial.

It restricts itself as SPEC (JSON, of lab/sandbox.py) says; if it cannot, the trial does not start. It imports the
standard library alone: every start waits for it. No maintained package wraps Landlock, namespaces and mounts.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF, MOUNT_SETATTR = 444, 445, 446, 442  # everywhere
SECCOMP, PIVOT_ROOT = (277, 41) if os.uname().machine == "aarch64" else (317, 155)
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18, 2
ATTR_RDONLY, ATTR_NOSUID, AT_FDCWD, AT_RECURSIVE = 1, 2, -100, 0x8000
# Landlock's rights (kernel documentation: userspace-api/landlock)
READ, LIST = 0b1101, 0b1000  # execute, read a file, list a folder
OF_A_FILE = 0b1100_0000_0000_0111  # execute, write, read, truncate, ioctl
N_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version; 16 from the fifth on
SIGNALS_FROM = 6  # the version that keeps signals inside
TCP, SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals of processes outside
PRIVATE = ("/tmp", "/dev/shm")  # of a trial in namespaces, in memory
MAX_FILE_BYTES = 16 * 10**9
MAX_THREADS = 16_384  # of a user other than root; Linux may have only 32 768 numbers for them all
TMPFS_SIZE = "size=25%,mode=1777"  # of the machine's memory, which the referee watches
A_SIGNAL = 128  # added to a signal's number it is an exit code, as in a shell

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    spec, program = json.loads(sys.argv[1]), sys.argv[2:]
    die_with_parent(spec["parent"], signal.SIGKILL)
    for kind, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
                         (resource.RLIMIT_NPROC, MAX_THREADS)):
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))
    with contextlib.suppress(OSError):  # macOS has no /proc
        Path("/proc/self/oom_score_adj").write_text("1000")  # out of memory, the trial goes first
    if spec["kind"] == "ns":
        enter_namespaces(spec)  # it returns in another process
    if sys.platform == "linux":
        prctl(PR_SET_NO_NEW_PRIVS, 1)  # Landlock requires it, and exec gives no capability back
        drop_capabilities()
    if spec["kind"] != "none":
        restrict_files(spec)
        rules = bytes.fromhex(spec["filter"])
        # struct sock_fprog. Without SPEC_ALLOW, kernels before 5.16 slow the whole process.
        filter_program = (ctypes.c_uint64 * 2)(len(rules) // 8, ctypes.cast(rules, ctypes.c_void_p).value)
        _check(_libc.syscall(SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, filter_program))
    os.execv(program[0], program)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _check(_libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))


def hide() -> None:
    """Close this process's /proc entries (environment, memory) to others of the user."""
    prctl(PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have the kernel send a signal to this process when its parent ends."""
    prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def drop_capabilities() -> None:
    """Make root a user like any other: CAP_PERFMON alone reads all of /proc past Landlock."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()))


def landlock_version() -> int:
    """The kernel's Landlock version; 0 where it has none."""
    return max(0, _libc.syscall(CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def restrict_files(spec: dict) -> None:
    """Landlock: paths to read and write; no TCP, no signal or abstract socket to the outside."""
    version = landlock_version()
    rights = (1 << N_RIGHTS.get(version, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(rights, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _check(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
    private = PRIVATE if spec["kind"] == "ns" else ()
    allowed = [(path, rights) for path in (*spec["writable"].values(), *spec["devices"].values(), *private)]
    for root in spec["readable"].values():
        allowed += _readable_parts(root, spec["hidden"])
    for path, access in allowed:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # not there, or closed anyway
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access &= rights if os.path.isdir(path) else rights & OF_A_FILE
            rule = access.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
            _check(_libc.syscall(ADD_RULE, ruleset, 1, rule, 0))
            os.close(fd)
    _check(_libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _readable_parts(path: str, hidden: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Rules, (path, rights), for all below `path` that is not hidden; folders above a hidden one can only be listed."""
    inside = [folder for folder in hidden if f"{folder}/".startswith(f"{path}/")]
    if path in inside:
        return
    yield path, LIST if inside else READ
    if inside:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_symlink():  # a rule for a link would be one for its target
                    yield from _readable_parts(entry.path, inside)


def enter_namespaces(spec: dict) -> None:
    """Return in a grandchild that has namespaces and a file system of its own.

    The started process stays outside. Its child is process 1 inside: when it ends, the kernel kills all inside.
    """
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    outside = os.pidfd_open(os.getpid())
    if first := os.fork():
        _end_with(first)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([outside], [], [], 0)[0]:  # it ended before that call
        os._exit(1)
    make_root(spec)
    drop_capabilities()
    hide()
    if trial := os.fork():
        _end_with(trial)


def _end_with(child: int) -> None:
    """Wait for a child and end the same way. No signal of its own kills process 1: its exit code carries the number."""
    os.closerange(0, 2**31 - 1)
    drop_capabilities()
    ended = 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - A_SIGNAL
    if os.getpid() != 1 and number in signal.valid_signals():
        with contextlib.suppress(OSError):  # SIGKILL cannot be set
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(A_SIGNAL - code if code < 0 else code)


def make_root(spec: dict) -> None:
    """Give this process a file system of what `spec` names; nothing else is there."""
    _check(_libc.unshare(CLONE_NEWNS))
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    os.mkdir("/tmp/old")
    _check(_libc.syscall(PIVOT_ROOT, b"/tmp", b"/tmp/old"))
    os.chdir("/")
    for path in ("/empty", "/proc", "/dev", *PRIVATE):
        os.mkdir(path)
    for path in PRIVATE:
        _mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, TMPFS_SIZE)
    os.symlink("/proc/self/fd", "/dev/fd")
    shown = spec["readable"] | spec["devices"] | spec["writable"]
    for place, real in shown.items():
        if place == "/proc":
            continue
        is_folder = os.path.isdir("/old" + real)
        os.makedirs(place if is_folder else os.path.dirname(place), exist_ok=True)
        if not is_folder:
            Path(place).touch()
        _mount("/old" + real, place, "", MS_BIND | MS_REC)
    for path in spec["hidden"]:
        for place, real in shown.items():
            if f"{path}/".startswith(f"{real}/") and os.path.isdir(place + path.removeprefix(real)):
                _mount("/empty", place + path.removeprefix(real), "", MS_BIND)
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _check(_libc.umount2(b"/old", MNT_DETACH))
    os.rmdir("/old")
    _set_attributes("/", ATTR_RDONLY | ATTR_NOSUID, 0, AT_RECURSIVE)
    for path in (*spec["writable"], *PRIVATE):
        _set_attributes(path, 0, ATTR_RDONLY, 0)
    os.chdir(spec["folder"])


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _check(_libc.mount(*map(os.fsencode, (source, target, kind)), ctypes.c_ulong(flags), options.encode()))


def _set_attributes(path: str, on: int, off: int, flags: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(on, off, 0, 0)  # struct mount_attr
    _check(_libc.syscall(MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(32)))


if __name__ == "__main__":
    main()
