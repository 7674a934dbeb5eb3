"""The person at the terminal: Ctrl-C and SIGTERM, a terminal that goes away, output that fails.

Promises: the first signal lets the trial finish, the second ends it; output that
fails never ends the loop.
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


class Quiet(io.FileIO):
    """Output that never fails: the reader may leave, the disk be full, the terminal go."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def survive() -> None:
    """Give stdin, stdout and stderr a place where they have none, and let no output fail."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:  # otherwise a file of ours becomes "stdout"
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # a test may have put something else there
            place = io.BufferedWriter(Quiet(number, "w", closefd=False))
            encoding = stream.encoding if stream else "utf-8"
            setattr(sys, name, io.TextIOWrapper(place, encoding, "backslashreplace", line_buffering=True))


class Stop:
    """What the user has asked for so far. A closed terminal changes nothing."""

    def __init__(self):
        self.asked = threading.Event()  # stop after the trial under way
        self.now = threading.Event()    # stop the trial too
        self.answered = False

    def listen(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGHUP, lambda *_: None)  # trials would inherit SIG_IGN

    def _on_signal(self, *_: object) -> None:
        (self.now if self.asked.is_set() else self.asked).set()

    def answer(self, left_s: float, say: Callable[[str], None]) -> None:
        """Say what the first signal does, once."""
        if self.asked.is_set() and not self.answered:
            self.answered = True
            minutes, seconds = divmod(round(left_s), 60)
            say(f"stopping after this trial, {minutes}:{seconds:02} left; Ctrl-C again ends it now")


def current_tag() -> str:
    """The session that is checked out, "" for none."""
    head = subprocess.run(["git", "symbolic-ref", "-q", "HEAD"], capture_output=True, text=True).stdout.strip()
    branch, tag = os.path.split(head)
    return tag if branch == "refs/heads/autoresearch" else ""


def fault_line(error: Exception) -> str:
    """What the user reads of a fault that no retry mends."""
    if any(getattr(each, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) for each in (error, error.__context__)):
        return "the disk is full; make room and run the same command again: it continues"
    if isinstance(error, SetupError):
        return str(error)
    return f"{one_line(str(error))}; put that right and run the same command again: it continues"


def unforeseen(error: Exception, runs: Path) -> str:
    """The line for a fault of ours; its traceback goes into fault.log."""
    text, path = "".join(traceback.format_exception(error)), runs / "fault.log"
    runs.mkdir(parents=True, exist_ok=True)
    known = path.read_text("utf-8", "replace") if path.is_file() else ""
    path.write_text(f"{known}\n{utc_now()}\n{text}", "utf-8", "backslashreplace")
    what = f"{type(error).__name__}: {one_line(str(error), 200)}"
    if known.endswith(text):
        return f"{what}, the same fault as the last time: see {path}"
    return f"a fault of ours ({what}), kept in {path}; run the same command again: it continues"
