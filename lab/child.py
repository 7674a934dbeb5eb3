"""One untrusted process: a fresh folder, the sandbox, its pipes, a bounded log, and its end.

Promises: the referee never blocks on the other side, and every wait ends at a deadline. What the
process does wrong is a ContractBroken with the row's reason. After the `with` of `child_of` it and
all its descendants are dead. A trial and its witness share neither folder, memory nor compile
cache. It does not know what is asked, or why.
"""

import builtins
import contextlib
import fcntl
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from lab import machine, sandbox
from lab.corpus import Data
from lab.ledger import Ending
from lab.wire import ANSWER, KEEP_FREED_MEMORY, REQUEST, TRIAL_VARIABLE, logits_memory

ROOT = Path(__file__).resolve().parent.parent
MAX_PROCESSES = 512     # a fork bomb ends here; compile workers and loaders need a few dozen
MAX_THREADS = 8192      # of all its processes; each takes a PID, and the whole machine may run out of them
MOST_OF_DISK = (16e9, 1e6)  # bytes and files that it may lose while a trial runs, at most half of what is left
LEAST_MEMORY = 0.04     # free share of memory below which a trial ends, before the OOM killer acts
WATCH_EVERY_S = 1.0
PAUSE_S = 3.0           # a wait that exceeds its timeout by this means that the machine stood still
DYING_S = 1.0           # for a process to end by itself, with its own error
UNKILLABLE_S = 60.0     # for one that is killed
PIPE_BYTES = 1 << 20
LOG_BYTES = 32 * 1024   # of a log's head, and of its tail
TELL_EVERY_S, TELL_BYTES = 0.5, 4096  # what the display gets of the log
CACHE_LIMITS = (20_000, 4 << 30, 12)  # files, bytes and depth of a compile cache
COMMON = {*dir(builtins), "OutOfMemoryError"}  # exceptions that a reason may name at any time


class ContractBroken(Exception):
    """A process crashed, ran over or broke the contract; the message is the row's reason."""

    def __init__(self, reason: str, ending: Ending = Ending.FOUL):
        super().__init__(reason)
        self.ending = ending


class HungUp(ContractBroken):
    """It ended, or closed its pipes, before it had answered."""

    def __init__(self):
        super().__init__("ended before it was scored", Ending.CRASHED)


def tell(event: str, value: object) -> None:
    """One JSON line to the runner."""
    print(json.dumps({"event": event, "value": value}), flush=True)


class Child:
    """The referee's end of the pipes to one process, its supervision, and how it ended."""

    def __init__(self, process: subprocess.Popen, tokens_fd: int, events_fd: int, logits_fd: int,
                 on_gpu: bool):
        self.pid, self.outputs = process.pid, process.stdout
        self.tokens_fd, self.events_fd, self.logits_fd = tokens_fd, events_fd, logits_fd
        self.log_fd: int | None = self.outputs.fileno()
        self.log, self.n_cut, self.untold, self.told_at = bytearray(), 0, b"", 0.0
        self.early: str | None = None  # what it printed before it knew a validation row
        self.requests = bytearray()
        self.watched_at, self.disk_at_start = time.monotonic(), disk_left()
        self.idle_gb = machine.card_used_gb() if on_gpu else None
        self.broken: ContractBroken | None = None
        self.ended_at = self.memory_gb = 0.0
        self.note = ""  # GPU memory that it held on to
        # Its end is noticed at once, though a daemon may hold its pipes open (Linux).
        self.end_fd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        self.selector = selectors.PollSelector()  # a trial can take all that the kernel keeps for epoll
        for fd in filter(None, (events_fd, self.log_fd, self.end_fd)):
            self.selector.register(fd, selectors.EVENT_READ)
        for fd in (events_fd, self.log_fd, tokens_fd):
            os.set_blocking(fd, False)

    def turn(self, deadline: float, why: str) -> list[int]:
        """Wait for something to happen, until the deadline; the descriptors that are ready."""
        began = time.monotonic()
        if began >= deadline:
            stood_still(deadline)
            raise ContractBroken(why, Ending.CRASHED)
        if began - self.watched_at > WATCH_EVERY_S:
            tell("memory", watch(self.disk_at_start))
            self.watched_at = began = time.monotonic()
        wait_s = min(deadline - began, WATCH_EVERY_S)
        ready = [key.fd for key, _ in self.selector.select(wait_s)]
        stood_still(began + wait_s)
        if self.log_fd in ready:
            self.read_log()
        if time.monotonic() - self.told_at > TELL_EVERY_S:
            self.tell_lines()
        if self.end_fd in ready and self.events_fd not in ready:
            raise HungUp
        return ready

    def read_log(self) -> None:
        """Keep the head and the tail of what it prints, whatever the flood."""
        data = os.read(self.log_fd, 1 << 16)
        if not data:  # it closed its outputs; everything else about it is still watched
            self.selector.unregister(self.log_fd)
            self.log_fd = None
        self.log += data
        if len(self.log) > 4 * LOG_BYTES:
            self.n_cut += len(self.log) - 2 * LOG_BYTES
            del self.log[LOG_BYTES:-LOG_BYTES]
        self.untold = (self.untold + data)[-TELL_BYTES:]

    def begin_rows(self) -> None:
        """To be called before it sees validation rows: the researcher never reads what it prints from now on."""
        if self.log_fd in [key.fd for key, _ in self.selector.select(0)]:
            self.read_log()
        self.early, self.log, self.n_cut = self.log_text(), bytearray(), 0

    def words(self) -> tuple[str, str]:
        """What it printed before it knew validation rows, and after."""
        return (self.log_text(), "") if self.early is None else (self.early, self.log_text())

    def log_text(self) -> str:
        gap = b"\n[%d bytes cut]\n" % self.n_cut if self.n_cut else b""
        return (self.log[:LOG_BYTES] + gap + self.log[LOG_BYTES:]).decode("utf-8", "replace")

    def tell_lines(self) -> None:
        """Tell the display the whole lines that were printed since the last time."""
        lines, newline, rest = self.untold.rpartition(b"\n")
        if newline:
            tell("line", lines.decode("utf-8", "replace"))
            self.untold, self.told_at = rest, time.monotonic()

    def request(self, deadline: float, why: str) -> tuple[bytes, int]:
        """The next request. Raises ContractBroken at the deadline, HungUp after its end."""
        while len(self.requests) < REQUEST.size:
            if self.events_fd in self.turn(deadline, why):
                data = os.read(self.events_fd, REQUEST.size - len(self.requests))
                if not data:
                    raise HungUp
                self.requests += data
        operation, count = REQUEST.unpack(self.requests)
        self.requests.clear()
        return operation, count

    def answer(self, value: float, tokens: np.ndarray, deadline: float, why: str) -> None:
        data = memoryview(ANSWER.pack(value) + tokens.astype(np.int16).tobytes())
        self.selector.register(self.tokens_fd, selectors.EVENT_WRITE)
        try:
            while data:
                if self.tokens_fd in self.turn(deadline, why):
                    data = data[os.write(self.tokens_fd, data):]
        except BrokenPipeError:
            raise HungUp from None
        finally:
            self.selector.unregister(self.tokens_fd)

    def end(self, broken: ContractBroken | None, patience_s: float) -> None:
        """Wait for its end, kill it when patience is over, sweep, read what it printed, close."""
        self.ended_at, killed_at, code = time.monotonic(), None, None
        self.selector.unregister(self.events_fd)
        if self.idle_gb is not None:
            self.memory_gb = machine.card_used_gb() - self.idle_gb
        while code is None:
            ended, status, usage = os.wait4(self.pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
            elif killed_at and time.monotonic() > killed_at + UNKILLABLE_S:
                raise OSError("a trial does not die: a disk or a driver holds it")
            elif time.monotonic() > self.ended_at + patience_s:
                killed_at = killed_at or time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ContractBroken):
                self.turn(time.monotonic() + 0.02, "")
        with contextlib.suppress(OSError):  # nobody is left in its group
            os.killpg(self.pid, signal.SIGKILL)  # reaches those that fork faster than a sweep sees them
        sandbox.sweep()
        while self.log_fd in [key.fd for key, _ in self.selector.select(0)]:
            self.read_log()
        self.untold += b"\n"
        self.tell_lines()
        self.broken = broken
        if isinstance(broken, HungUp) or (broken and code > 0):  # it was late because it was dying
            self.broken = ContractBroken(last_error(*self.words(), code), Ending.CRASHED)
        if self.idle_gb is None:
            self.memory_gb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
        else:
            self.note = machine.wait_for_card(self.idle_gb)
        self.selector.close()
        self.outputs.close()
        for fd in filter(None, (self.tokens_fd, self.events_fd, self.logits_fd, self.end_fd)):
            os.close(fd)


def last_error(early: str, late: str, code: int) -> str:
    """Why a process ended by itself: the exception it named last, or its last line.

    The researcher reads it, so it takes nothing from `late` but the name of a common exception.
    """
    names = {each.value: each.name for each in signal.Signals}  # most real-time signals have none
    how = f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"
    lines = [line[:200] for line in (late or early).splitlines() if line.strip()]
    error = re.compile(r"([A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt))\b")
    named = [line for line in lines if error.match(line)]
    last = (named or lines)[-1] if lines and code else "ended before it was scored"
    if late:
        kind = error.match(last)[1].rpartition(".")[2] if named and code else ""
        return f"{kind if kind in COMMON else 'ended'} while it was scored"
    return f"{last} ({how})"


@contextlib.contextmanager
def child_of(spec: dict, data: Data, file_fd: int, file_bytes: int = 0,
             program: tuple[str, ...] = ("train.py",)) -> Iterator[Child]:
    """Start train.py in a fresh folder, restricted. A ContractBroken ends the `with`, and stays in `broken`.

    file_bytes: of the file that a witness loads; 0 for a trial, which writes it.
    program: what Python runs there: train.py, or what profiles it, on a CPU without 20 s of compiling.
    """
    known = None if file_bytes else Path(spec["folder"]) / "cache"
    work = fresh_folder(Path(spec["work"]) / "trial", spec["code"], known)
    cache, patience_s, broken = str(work / "cache"), 0.0, None
    tokens_read, tokens_write = os.pipe()
    events_read, events_write = os.pipe()
    with contextlib.suppress(AttributeError, PermissionError):  # Linux only, and it may be refused
        fcntl.fcntl(tokens_write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    logits_fd, logits_bytes = logits_memory(data.max_seq_len * data.vocab_size)
    trial = {
        "budget": spec["budget"], "seed": spec["seed"], "device": spec["device"],
        "vocab_size": data.vocab_size, "max_seq_len": data.max_seq_len, "tokens_fd": tokens_read,
        "events_fd": events_write, "logits_fd": logits_fd, "logits_bytes": logits_bytes,
        "file_fd": file_fd, "file_bytes": file_bytes}
    environment = sandbox.environment(str(work), cache) | KEEP_FREED_MEMORY
    environment |= {TRIAL_VARIABLE: json.dumps(trial)}
    is_eager = file_bytes or (spec["device"] == "cpu" and program != ("train.py",))
    environment |= {"TORCHDYNAMO_DISABLE": "1"} if is_eager else {}
    command = sandbox.command(str(work), cache, [sys.executable, *program], spec["hidden"])
    process = subprocess.Popen(
        command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
        pass_fds=(tokens_read, events_write, logits_fd, file_fd))
    os.close(tokens_read)
    os.close(events_write)
    child = Child(process, tokens_write, events_read, logits_fd, spec["device"] == "cuda")
    try:
        yield child
        patience_s = spec["limits"]["stop_s"]
    except ContractBroken as error:
        broken, patience_s = error, DYING_S
    finally:
        child.end(broken, patience_s)


def fresh_folder(work: Path, code: str, cache: Path | None) -> Path:
    """An empty working folder: train.py, the fixed files, a private copy of the compile cache.

    The cache is the baseline's, filled before any proposal, so no candidate can leave data in it for another.
    """
    remove(work)
    (work / "lab").mkdir(parents=True)
    (work / "train.py").write_bytes(code.encode("utf-8", "surrogateescape"))
    for name in ("prepare.py", "lab/wire.py", "lab/profiler.py"):
        shutil.copyfile(ROOT / name, work / name)
    if cache and cache.is_dir():
        sandbox.copy_plain(cache, work / "cache", *CACHE_LIMITS)  # empty on failure
    (work / "cache").mkdir(exist_ok=True)
    return work


def remove(folder: Path) -> None:
    """Delete a folder that a trial wrote: locked folders and depth do not stop it."""
    if folder.exists() and subprocess.run(["rm", "-rf", "--", str(folder)], stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["chmod", "-R", "u+rwx", "--", str(folder)], check=True)  # it follows no link
        subprocess.run(["rm", "-rf", "--", str(folder)], check=True)


def stood_still(since: float) -> None:
    """Raise ContractBroken if `since` passed over PAUSE_S ago: this process was not run in time."""
    seconds = time.monotonic() - since
    if seconds > PAUSE_S:
        raise ContractBroken(f"the machine stood still for {seconds:.0f} s", Ending.BUSY)


def disk_left() -> tuple[int, int]:
    """(bytes, files) that the disk of the trial's folder can still take."""
    facts = os.statvfs(ROOT)
    return facts.f_bavail * facts.f_frsize, facts.f_favail


def watch(disk_at_start: tuple[int, int]) -> float:
    """GB that the trial's processes hold, shared pages in each. Raises ContractBroken."""
    pids, n_bytes, n_threads = sandbox.descendants(os.getpid()), 0, 0
    if len(pids) > MAX_PROCESSES:
        raise ContractBroken(f"too many processes ({len(pids)})")
    taken = np.subtract(disk_at_start, disk_left())
    if (taken > np.minimum(MOST_OF_DISK, np.array(disk_at_start) / 2)).any():
        raise ContractBroken(f"took {taken[0] / 1e9:.1f} GB and {taken[1]} files of the disk")
    free_bytes, all_bytes = machine.memory()
    if free_bytes < LEAST_MEMORY * all_bytes:
        raise ContractBroken("out of memory", Ending.MEMORY)
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            n_bytes += psutil.Process(pid).memory_info().rss
            n_threads += sandbox.n_threads(pid)
    if n_threads > MAX_THREADS:
        raise ContractBroken(f"too many threads ({n_threads})")
    return round(n_bytes / 1e9, 3)
