"""Tell the user's own command what happened: a new best, a stop, a fault.

It runs beside the loop, for ten seconds at most, and nothing that it does stops or slows a trial. It could
not live in terminal.py, which knows no command. Text of a model reaches it on stdin alone, never as an argument.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

LONGEST_S = 10.0


def notify(command: str | None, event: str, headline: str, **facts: object) -> None:
    """Start the command with the headline on stdin and the facts as JSON in AUTORESEARCH_EVENT."""
    if command:
        # No daemon: this process waits for the command before it ends.
        threading.Thread(target=run, args=(command, headline, {"event": event, **facts})).start()


def run(command: str, headline: str, facts: Mapping[str, object]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    environment["AUTORESEARCH_EVENT"] = json.dumps(facts)
    child = subprocess.Popen(command, shell=True, env=environment, stdin=subprocess.PIPE, start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + LONGEST_S
    with suppress(subprocess.TimeoutExpired):
        child.communicate(f"{headline}\n".encode(), LONGEST_S)
    with suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
        while time.monotonic() < until:  # a mail program sends on behind its shell
            with suppress(ChildProcessError):  # what it left may have become a child of this process
                os.waitpid(-child.pid, os.WNOHANG)
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
