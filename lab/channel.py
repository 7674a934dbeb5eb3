"""The referee's end of the pipes to an untrusted process: requests in, answers out, a bounded log, resources watched.

Promises: it never blocks on the other side and always ends at a deadline. Whatever the other side does wrong is a
ContractBroken with the row's reason. It does not know what is asked or why: lab/referee.py does.
"""

import contextlib
import json
import os
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab import sandbox
from lab.ledger import Ending
from lab.wire import ANSWER, REQUEST

MAX_PROCESSES = 512     # a fork bomb ends here; compile workers and loaders need a few dozen
MAX_DISK_BYTES = 16e9   # that the disk may lose while a trial runs; its folder is on it
LEAST_MEMORY = 0.04     # of the machine's memory: below it the trial ends before the kernel picks a victim
WATCH_EVERY_S = 1.0
PAUSE_S = 3.0           # a turn this much longer than its own time-out: the machine stood still, a laptop's lid
LOG_BYTES = 32 * 1024   # of a log's head, and of its tail
TELL_EVERY_S = 0.5      # lines of the log that the display gets


class ContractBroken(Exception):
    """An untrusted process crashed, ran over or broke the contract; the message is the row's reason."""

    def __init__(self, reason: str, ending: Ending = Ending.FOUL):
        super().__init__(reason)
        self.ending = ending


class HungUp(ContractBroken):
    """It ended, or closed its pipes, before it had answered."""

    def __init__(self):
        super().__init__("ended before it was scored", Ending.CRASHED)


class Paused(ContractBroken):
    """The machine stood still: no fault of the trial."""

    def __init__(self, seconds: float):
        super().__init__(f"the machine stood still for {seconds:.0f} s", Ending.BUSY)


@dataclass
class Log:
    """What a process printed: a bounded head and tail, whatever the flood."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    n_bytes: int = 0

    def add(self, data: bytes) -> None:
        self.n_bytes += len(data)
        room = LOG_BYTES - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * LOG_BYTES:
            del self.tail[:-LOG_BYTES]

    def text(self) -> str:
        tail = self.tail[-LOG_BYTES:]
        cut = self.n_bytes - len(self.head) - len(tail)
        gap = b"\n[%d bytes cut]\n" % cut if cut else b""
        return (self.head + gap + tail).decode("utf-8", "replace")


def tell(event: str, value: object) -> None:
    """One JSON line to the runner."""
    print(json.dumps({"event": event, "value": value}), flush=True)


class Channel:
    """Pipes to one process. With no log there is no runner either: train.py was started by hand."""

    def __init__(self, tokens_fd: int, events_fd: int, log_fd: int | None):
        self.tokens_fd, self.events_fd, self.log_fd = tokens_fd, events_fd, log_fd
        self.by_hand = log_fd is None
        self.log, self.last_line, self.told_at = Log(), b"", 0.0
        self.requests = bytearray()
        self.process_fd: int | None = None
        self.memory_gb: Callable[[], float] = resident_gb
        self.watched_at, self.free_at_start = time.monotonic(), free_bytes()
        self.selector = selectors.DefaultSelector()
        for fd in (tokens_fd, events_fd, *([] if log_fd is None else [log_fd])):
            os.set_blocking(fd, False)
        self.selector.register(events_fd, selectors.EVENT_READ)
        if log_fd is not None:
            self.selector.register(log_fd, selectors.EVENT_READ)

    def close(self) -> None:
        self.selector.close()
        for fd in (self.tokens_fd, self.events_fd, self.log_fd, self.process_fd):
            if fd is not None:
                os.close(fd)

    def follow(self, pid: int) -> None:
        """Notice at once when this process ends, though one that it left may hold its pipes open (Linux)."""
        if hasattr(os, "pidfd_open"):
            self.process_fd = os.pidfd_open(pid)
            self.selector.register(self.process_fd, selectors.EVENT_READ)

    def turn(self, deadline: float, why: str) -> list[int]:
        """Wait for something to happen, at most until the deadline; return the descriptors that are ready."""
        began = time.monotonic()
        if began >= deadline:
            stood_still(deadline)
            raise ContractBroken(why)
        if not self.by_hand and began - self.watched_at > WATCH_EVERY_S:
            watch(self.free_at_start)
            tell("memory", round(self.memory_gb(), 3))
            self.watched_at = time.monotonic()
        began = time.monotonic()
        wait_s = max(0.0, min(deadline - began, WATCH_EVERY_S))
        ready = [key.fd for key, _ in self.selector.select(wait_s)]
        stood_still(began + wait_s)
        if self.log_fd is not None and self.log_fd in ready:
            self.read_log()
        if self.process_fd in ready and self.events_fd not in ready:
            raise HungUp
        return ready

    def read_log(self) -> None:
        data = os.read(self.log_fd, 1 << 16)
        if not data:  # it closed its outputs; everything else about it is still watched
            self.selector.unregister(self.log_fd)
            os.close(self.log_fd)
            self.log_fd = None
            return
        self.log.add(data)
        *lines, self.last_line = (self.last_line + data)[-4096:].split(b"\n")
        if lines and time.monotonic() - self.told_at > TELL_EVERY_S:
            self.told_at = time.monotonic()
            tell("line", lines[-1].decode("utf-8", "replace")[:300])

    def drain(self) -> None:
        """Read what is still in the log's pipe; every writer is gone."""
        while self.log_fd is not None and self.log_fd in [key.fd for key, _ in self.selector.select(0)]:
            self.read_log()

    def request(self, deadline: float, why: str) -> tuple[bytes, int]:
        """The next request. Raises ContractBroken at the deadline, HungUp when the other side is gone."""
        while len(self.requests) < REQUEST.size:
            if self.events_fd in self.turn(deadline, why):
                data = os.read(self.events_fd, REQUEST.size - len(self.requests))
                if not data:
                    raise HungUp
                self.requests += data
        operation, count = REQUEST.unpack(self.requests)
        self.requests.clear()
        return operation, count

    def answer(self, value: float, tokens: np.ndarray | None, deadline: float, why: str) -> None:
        data = memoryview(ANSWER.pack(value) + (b"" if tokens is None else tokens.astype(np.int16).tobytes()))
        self.selector.register(self.tokens_fd, selectors.EVENT_WRITE)
        try:
            while data:
                if self.tokens_fd in self.turn(deadline, why):
                    data = data[os.write(self.tokens_fd, data):]
        except BrokenPipeError:
            raise HungUp from None
        finally:
            self.selector.unregister(self.tokens_fd)


def stood_still(since: float) -> None:
    """Raise Paused when it is much later than `since`, a moment that this process should hardly have passed."""
    seconds = time.monotonic() - since
    if seconds > PAUSE_S:
        raise Paused(seconds)


def free_bytes() -> float:
    """Of the disk that holds the checkout, and so the folder of every trial."""
    disk = os.statvfs(Path(__file__).parent)
    return disk.f_bavail * disk.f_frsize


def watch(free_at_start: float) -> None:
    """Raise ContractBroken when the trial has too many processes or leaves too little memory or disk."""
    n_processes = len(sandbox.descendants(os.getpid()))
    if n_processes > MAX_PROCESSES:
        raise ContractBroken(f"too many processes ({n_processes})")
    if free_at_start - free_bytes() > MAX_DISK_BYTES:
        raise ContractBroken(f"wrote more than {MAX_DISK_BYTES / 1e9:.0f} GB")
    if sys.platform != "linux":
        return
    with open("/proc/meminfo", "rb") as file:
        kilobytes = {line.split(b":")[0]: int(line.split()[1]) for line in file}
    if kilobytes[b"MemAvailable"] < LEAST_MEMORY * kilobytes[b"MemTotal"]:
        raise ContractBroken("out of memory", Ending.MEMORY)


def resident_gb() -> float:
    """Memory that the trial's processes hold, shared pages counted in each; 0 where there is no /proc."""
    n_pages = 0
    for pid in sandbox.descendants(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", "rb") as file:
            n_pages += int(file.read().split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE") / 1e9
