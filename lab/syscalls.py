"""The system calls that a trial is refused, and the filter program that refuses them (seccomp, classic BPF).

Landlock guards files, TCP, signals and abstract sockets. The tables hold the other ways by which a process
without capabilities reaches others, leaves data for the next trial or reads what others left. All else is allowed,
because nobody can list what CUDA's libraries call. A system call that is newer than the tables does not exist for a
trial. A filter cannot tell one file from another: locks (flock) on what a trial can read stay open.
"""

import errno
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
NEWEST = 462  # mseal, Linux 6.10; 463 to 470 set attributes of files and list namespaces

# Name, number on x86_64 and on aarch64 ("-": it never had it), and what its arguments must be to be allowed: an
# argument's lower half, masked, is one of some values (=) or none of them (!=). The numbers are those of the kernel's
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
REFUSED = """
    # Other processes: their memory, descriptors and priorities
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440,
    process_mrelease 448 448, pidfd_getfd 438 438, kcmp 312 272, ioprio_set 251 30
    # System V memory, semaphores and queues, POSIX queues, keyrings: all outlive the process that filled them
    shmget 29 194, shmat 30 196, shmctl 31 195, semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192,
    msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180, mq_unlink 241 181,
    mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184, mq_getsetattr 245 185,
    add_key 248 217, request_key 249 218, keyctl 250 219
    # The kernel's log: it names a process that crashed by the name that this process gave itself
    syslog 103 116
    # What a file's owner may change without write access: attributes, times, mode, owner, length
    setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16,
    utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, chmod 90 -, fchmod 91 52, fchmodat 268 53,
    fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, truncate 76 45
    # What others read, write or keep in the page cache
    mincore 27 232, cachestat 451 451, inotify_init 253 -, inotify_init1 294 26, inotify_add_watch 254 27,
    fadvise64 221 223, readahead 187 213, madvise 28 233 arg2!=20|21, fanotify_init 300 262,
    fanotify_mark 301 263, name_to_handle_at 303 264, open_by_handle_at 304 265
    # Namespaces and mounts
    unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428,
    move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442
    # Doors into the kernel that training has no use for
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, memfd_secret 447 447
    # Allowed: clones without new namespaces; limits, priorities and pages of oneself, process 0; stream socket pairs,
    # because one of datagrams could send to any socket that has a path
    clone 56 220 arg0&0x7E020000=0, prlimit64 302 261 arg0=0, setpriority 141 140 arg0=0 arg1=0,
    migrate_pages 256 238 arg0=0, move_pages 279 239 arg0=0, socketpair 53 199 arg0=1 arg1&0xF=1|5
    # Not F_SETOWN, SETSIG, SETOWN_EX, SETLEASE, NOTIFY, ADD_SEALS, SET_RW_HINT: none of them needs write access
    fcntl 72 25 arg1!=8|10|15|1024|1026|1033|1036
"""
# Refused with "not a terminal", as on a plain file: TIOCSTI, TIOCLINUX, the groups f, v, X and 0x94 (file systems,
# Btrfs), and FIOSETOWN and SIOCSPGRP, by which a socket sends signals to a process of one's choice.
NO_TERMINAL = "ioctl 16 29 arg1!=0x5412|0x541C|0x8901|0x8902 arg1&0xFF00!=0x6600|0x7600|0x5800|0x9400"
# These do not exist for a trial, so that libraries take the older way: flags of clone3 lie in memory, where no filter
# looks; preadv2 can ask what is cached; io_uring would do all of the above unseen.
UNKNOWN = """
    clone3 435 435, preadv2 327 286, pwritev2 328 287, io_uring_setup 425 425, io_uring_enter 426 426,
    io_uring_register 427 427
"""
# In its own namespaces a trial sees only its own processes and Unix sockets. Without them it must stay in its process
# group, so that one signal reaches all of it, however fast it forks.
REFUSED_IN_NAMESPACES = ", socket 41 198 arg0=1"
REFUSED_AMONG_OTHERS = """
    , socket 41 198, sched_setaffinity 203 122 arg0=0, sched_setparam 142 118 arg0=0,
    sched_setscheduler 144 119 arg0=0, sched_setattr 314 274 arg0=0, setpgid 109 154, setsid 112 157
"""
# Landlock before version 6 lets signals out. The filter then refuses those to all processes (-1) and to the watchers of
# the trial, and tkill and pidfd_send_signal altogether: from a thread or a descriptor it cannot tell the process.
SIGNALS = ("kill 62 129", "tgkill 234 131", "rt_sigqueueinfo 129 138", "rt_tgsigqueueinfo 297 240",
           "pidfd_open 434 434")
REFUSED_IF_BOUND = ", sched_setaffinity 203 122"

# linux/bpf_common.h, linux/seccomp.h, and where struct seccomp_data keeps its fields
LOAD, AND, IF_EQUAL, IF_GREATER, RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16


@dataclass(frozen=True)
class Call:
    """A system call that is refused with an error unless all its conditions hold."""

    name: str
    numbers: dict[str, int]       # by architecture
    conditions: tuple[str, ...]   # "arg1&0xF=1|5"
    error: int


def calls(private: bool, is_bound: bool = False, watchers: Sequence[int] = ()) -> list[Call]:
    """All rows; private: the trial has namespaces of its own; is_bound: to some of the cores.

    watchers: processes to which it may send no signal.
    """
    found, level = [], REFUSED_IN_NAMESPACES if private else REFUSED_AMONG_OTHERS
    bound = REFUSED_IF_BOUND if is_bound else ""  # the first row of a call decides
    if watchers:
        named = [-1, *watchers, *(-pid for pid in watchers)]  # all, processes, groups
        values = "|".join(str(number % 2**32) for number in named)
        level += ", tkill 200 130, pidfd_send_signal 424 424" + "".join(f", {call} arg0!={values}" for call in SIGNALS)
    for text, error in ((REFUSED + bound + level, errno.EPERM), (NO_TERMINAL, errno.ENOTTY), (UNKNOWN, errno.ENOSYS)):
        for row in re.sub("#.*", ",", text).split(","):
            if row.strip():
                name, x86_64, aarch64, *conditions = row.split()
                numbers = {"x86_64": int(x86_64)} | ({} if aarch64 == "-" else {"aarch64": int(aarch64)})
                found.append(Call(name, numbers, tuple(conditions), error))
    return found


def program(machine: str, private: bool, is_bound: bool = False, watchers: Sequence[int] = ()) -> bytes:
    """The filter for `machine`, a key of ARCHITECTURES: per call one comparison, and a jump over its verdict."""
    code = [_op(LOAD, ARCHITECTURE_AT), _op(IF_EQUAL, ARCHITECTURES[machine], 1, 0), _op(RETURN, KILL),
            _op(LOAD, NUMBER_AT), _op(IF_GREATER, NEWEST, 0, 1), _op(RETURN, ERRNO | errno.ENOSYS)]
    for call in calls(private, is_bound, watchers):
        if machine in call.numbers:
            verdict = _verdict(call)
            code += [_op(IF_EQUAL, call.numbers[machine], 0, len(verdict)), *verdict]
    return b"".join([*code, _op(RETURN, ALLOW)])


def _verdict(call: Call) -> list[bytes]:
    """What happens to a call of the tables; every way through it ends in a return."""
    refusal, code = _op(RETURN, ERRNO | call.error), []
    for condition in call.conditions:
        argument, mask, sign, listed = re.fullmatch(r"arg(\d)&?(\w*)(!?=)(\S+)", condition).groups()
        values = [int(value, 0) for value in listed.split("|")]
        code += [_op(LOAD, ARGUMENTS_AT + 8 * int(argument)), _op(AND, int(mask or "0xFFFFFFFF", 0))]
        if sign == "=":  # an equal one jumps over the others and the refusal
            code += [*(_op(IF_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)), refusal]
        else:
            for value in values:
                code += [_op(IF_EQUAL, value, 0, 1), refusal]
    return [*code, _op(RETURN, ALLOW) if call.conditions else refusal]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; the jumps count the instructions that are skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
