"""The person at the terminal: Ctrl-C and SIGTERM, a terminal that goes away, a place for output that
fails.

Promises: the first signal lets the trial finish, the second ends it; no output that fails ends or
fails the loop, which then says less. It could not live in the display, which a trial's words pass
through and which may be none.
"""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from lab.ledger import SetupError, one_line, utc_now


class Voice:
    """stdout or stderr that falls silent instead of failing: a reader that left, a full disk, a dead terminal."""

    def __init__(self, stream: io.TextIOWrapper):
        self.stream = stream
        stream.reconfigure(errors="backslashreplace")  # a terminal of few letters

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            return self._fall_silent(len(text))

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._fall_silent(0)

    def _fall_silent(self, n_written: int) -> int:
        silence(self.stream.fileno())
        return n_written


def silence(*descriptors: int) -> None:
    """Every further word to these goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def survive() -> None:
    """Give stdin, stdout and stderr a place where they have none, and let none of them fail."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a file of ours becomes "stdout"
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if isinstance(stream, io.TextIOWrapper):  # a test may have put something else there
            setattr(sys, name, Voice(stream))


class Stop:
    """What the user has asked for so far. A closed terminal changes nothing."""

    def __init__(self):
        self.asked = threading.Event()  # stop after the trial under way
        self.now = threading.Event()    # stop the trial too
        self.unheard = threading.Event()  # asked, and not answered yet
        self.terminals: list[int] = []

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, lambda *_: silence(*self.terminals))
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def answer(self, left_s: float, say: Callable[[str], None]) -> None:
        """Say what the first signal does, once."""
        if self.unheard.is_set():
            self.unheard.clear()
            minutes, seconds = divmod(round(left_s), 60)
            say(f"stopping after this trial, {minutes}:{seconds:02} left; Ctrl-C again ends it now")

    def _on_signal(self, *_: object) -> None:
        if self.asked.is_set():
            self.now.set()
        else:
            self.asked.set()
            self.unheard.set()


def current_tag() -> str:
    """The session that is checked out, "" for none."""
    head = subprocess.run(["git", "symbolic-ref", "-q", "HEAD"], capture_output=True, text=True).stdout.strip()
    prefix = "refs/heads/autoresearch/"
    return head.removeprefix(prefix) if head.startswith(prefix) else ""


def fault_line(error: Exception) -> str:
    """What the user reads of a fault that no retry mends."""
    if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        return "the disk is full; make room and run the same command again: it continues"
    if isinstance(error, SetupError):
        return str(error)
    return f"{one_line(str(error))}; put that right and run the same command again: it continues"


def unforeseen(error: Exception, runs: Path) -> str:
    """The line for a fault of ours; its traceback goes into fault.log, whose last one tells whether it came again."""
    text, path = "".join(traceback.format_exception(error)), runs / "fault.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    again = path.is_file() and path.read_text(encoding="utf-8", errors="replace").endswith(text)
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"\n{utc_now()}\n{text}")
    what = f"{type(error).__name__}: {one_line(str(error), 200)}"
    if again:
        return f"{what}, the same fault as the last time: see {path}"
    return f"a fault of ours ({what}), kept in {path}; run the same command again: it continues"
