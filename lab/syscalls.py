"""The system calls that a trial is refused, and the filter program that refuses them (seccomp, classic BPF).

Landlock guards files, TCP, signals and abstract sockets. This table is for what an ordinary process can do beside that:
reach other processes, leave a word for the next trial, or learn what others left. What needs a capability is not here,
a trial has none. Everything else is allowed, since nobody can list what CUDA's libraries call; a system call that is
newer than this table does not exist for a trial.

What a filter cannot separate stays open: locks (flock) and signals by number on what a trial can see anyway.
Numbers: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import errno
import struct
from dataclasses import dataclass

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
NEWEST = 462  # mseal, Linux 6.10; 463 to 470 set attributes of files and list namespaces

# linux/bpf_common.h, linux/seccomp.h, and where struct seccomp_data keeps its fields
LOAD, AND, IF_EQUAL, IF_GREATER, RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
WHOLE = 0xFFFFFFFF  # of an argument's low half: the kernel takes no more of those below

AF_UNIX, SOCK_STREAM, SOCK_SEQPACKET, SOCK_TYPE = 1, 1, 5, 0xF
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
FCNTL_COMMANDS = (8, 10, 15, 1024, 1026, 1036)  # F_SETOWN, SETSIG, SETOWN_EX, SETLEASE, NOTIFY, SET_RW_HINT
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
IOCTL_TYPE = 0xFF00  # the letter of a request: f, v and X are those of file systems, 0x94 is Btrfs and reflinks
FILE_SYSTEMS = (ord("f") << 8, ord("v") << 8, ord("X") << 8, 0x9400)


@dataclass(frozen=True)
class Unless:
    """A condition on one argument: `argument & mask` is one of `values`, or with `among` False none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = WHOLE
    among: bool = True


@dataclass(frozen=True)
class Call:
    """A system call that is refused, unless all its conditions hold."""

    name: str
    x86_64: int
    aarch64: int | None  # None: this architecture never had it
    unless: tuple[Unless, ...] = ()
    error: int = errno.EPERM


# Refused whatever the arguments are: name, number on x86_64, number on aarch64.
REFUSED = (
    # Other processes: their memory, descriptors and priorities
    ("ptrace", 101, 117), ("process_vm_readv", 310, 270), ("process_vm_writev", 311, 271),
    ("process_madvise", 440, 440), ("process_mrelease", 448, 448), ("pidfd_getfd", 438, 438),
    ("kcmp", 312, 272), ("ioprio_set", 251, 30),
    # System V memory, semaphores and queues, POSIX queues, keyrings: all outlive the process that filled them
    ("shmget", 29, 194), ("shmat", 30, 196), ("shmctl", 31, 195),
    ("semget", 64, 190), ("semop", 65, 193), ("semctl", 66, 191), ("semtimedop", 220, 192),
    ("msgget", 68, 186), ("msgsnd", 69, 189), ("msgrcv", 70, 188), ("msgctl", 71, 187),
    ("mq_open", 240, 180), ("mq_unlink", 241, 181), ("mq_timedsend", 242, 182),
    ("mq_timedreceive", 243, 183), ("mq_notify", 244, 184), ("mq_getsetattr", 245, 185),
    ("add_key", 248, 217), ("request_key", 249, 218), ("keyctl", 250, 219),
    # What a file's owner may change without write access: attributes, times, mode, owner, length
    ("setxattr", 188, 5), ("lsetxattr", 189, 6), ("fsetxattr", 190, 7),
    ("removexattr", 197, 14), ("lremovexattr", 198, 15), ("fremovexattr", 199, 16),
    ("utime", 132, None), ("utimes", 235, None), ("futimesat", 261, None), ("utimensat", 280, 88),
    ("chmod", 90, None), ("fchmod", 91, 52), ("fchmodat", 268, 53), ("fchmodat2", 452, 452),
    ("chown", 92, None), ("fchown", 93, 55), ("lchown", 94, None), ("fchownat", 260, 54),
    ("truncate", 76, 45),  # Landlock knows it from version 3
    # What others read, write or keep in the page cache
    ("mincore", 27, 232), ("cachestat", 451, 451),
    ("inotify_init", 253, None), ("inotify_init1", 294, 26), ("inotify_add_watch", 254, 27),
    ("fanotify_init", 300, 262), ("fanotify_mark", 301, 263),
    ("name_to_handle_at", 303, 264), ("open_by_handle_at", 304, 265),
    # Namespaces and mounts
    ("unshare", 272, 97), ("setns", 308, 268), ("mount", 165, 40), ("umount2", 166, 39),
    ("pivot_root", 155, 41), ("chroot", 161, 51), ("open_tree", 428, 428), ("move_mount", 429, 429),
    ("fsopen", 430, 430), ("fsconfig", 431, 431), ("fsmount", 432, 432), ("fspick", 433, 433),
    ("mount_setattr", 442, 442),
    # Doors into the kernel that training has no use for
    ("bpf", 321, 280), ("perf_event_open", 298, 241), ("userfaultfd", 323, 282), ("memfd_secret", 447, 447),
)

# These do not exist for a trial, and libraries then take the older way: flags of clone3 lie in memory, where no filter
# looks; preadv2 can ask what is cached; io_uring would do all of the above unseen.
UNKNOWN = (
    ("clone3", 435, 435), ("preadv2", 327, 286), ("pwritev2", 328, 287),
    ("io_uring_setup", 425, 425), ("io_uring_enter", 426, 426), ("io_uring_register", 427, 427),
)

ONESELF = (Unless(0, (0,)),)  # process number 0
CONDITIONAL = (
    Call("clone", 56, 220, (Unless(0, (0,), NEW_NAMESPACES),)),
    Call("prlimit64", 302, 261, ONESELF),
    Call("setpriority", 141, 140, (Unless(0, (0,)), Unless(1, (0,)))),  # PRIO_PROCESS, oneself
    Call("migrate_pages", 256, 238, ONESELF),
    Call("move_pages", 279, 239, ONESELF),
    # Pairs that are streams; one of datagrams could send to any socket that has a path
    Call("socketpair", 53, 199, (Unless(0, (AF_UNIX,)), Unless(1, (SOCK_STREAM, SOCK_SEQPACKET), SOCK_TYPE))),
    # Leases, watches, signals and hints, which need no write access
    Call("fcntl", 72, 25, (Unless(1, FCNTL_COMMANDS, among=False),)),
    Call("ioctl", 16, 29, (Unless(1, (TIOCSTI, TIOCLINUX), among=False),
                           Unless(1, FILE_SYSTEMS, IOCTL_TYPE, among=False)), errno.ENOTTY),
)

# In namespaces of its own a trial meets no process and no socket but its own.
PRIVATE = (
    Call("socket", 41, 198, (Unless(0, (AF_UNIX,)),)),
)
SHARED = (
    Call("socket", 41, 198),
    Call("sched_setaffinity", 203, 122, ONESELF),
    Call("sched_setparam", 142, 118, ONESELF),
    Call("sched_setscheduler", 144, 119, ONESELF),
    Call("sched_setattr", 314, 274, ONESELF),
)


def calls(private: bool) -> tuple[Call, ...]:
    """The whole table; `private`: the trial has namespaces of its own."""
    return (*(Call(*row) for row in REFUSED), *(Call(*row, error=errno.ENOSYS) for row in UNKNOWN),
            *CONDITIONAL, *(PRIVATE if private else SHARED))


def program(machine: str, private: bool) -> bytes:
    """The filter for `machine`, a key of ARCHITECTURES.

    One comparison a row: load the number, skip the row's verdict when it is another call's.
    """
    code = [_op(LOAD, ARCHITECTURE_AT), _op(IF_EQUAL, ARCHITECTURES[machine], 1, 0), _op(RETURN, KILL),
            _op(LOAD, NUMBER_AT), _op(IF_GREATER, NEWEST, 0, 1), _op(RETURN, ERRNO | errno.ENOSYS)]
    for call in calls(private):
        number = getattr(call, machine)
        if number is not None:
            verdict = _verdict(call)
            code += [_op(IF_EQUAL, number, 0, len(verdict)), *verdict]
    return b"".join([*code, _op(RETURN, ALLOW)])


def _verdict(call: Call) -> list[bytes]:
    """What happens to a call that is in the table; every way through it ends in a return."""
    refusal = _op(RETURN, ERRNO | call.error)
    if not call.unless:
        return [refusal]
    code = []
    for condition in call.unless:
        n = len(condition.values)
        code += [_op(LOAD, ARGUMENTS_AT + 8 * condition.argument), _op(AND, condition.mask)]
        for i, value in enumerate(condition.values):
            to_refusal = n - 1 - i
            equal = to_refusal + 1 if condition.among else to_refusal
            other = 1 if i == n - 1 and not condition.among else 0
            code.append(_op(IF_EQUAL, value, equal, other))
        code.append(refusal)
    return [*code, _op(RETURN, ALLOW)]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; the jumps count the instructions that are skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
