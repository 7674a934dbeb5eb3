"""One untrusted process: a fresh folder, the sandbox, its pipes; and nothing of it left afterwards.

Promises: whatever the process did, `child_of` returns with all its descendants dead. A trial and its witness start the
same way but share neither folder, memory nor compile cache. It does not know what they are asked.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import baseline, sandbox
from lab.channel import Channel, ContractBroken
from lab.corpus import Data
from lab.wire import TRIAL_VARIABLE, logits_memory

ROOT = Path(__file__).resolve().parent.parent
PIPE_BYTES = 1 << 20


@dataclass
class Child:
    """One untrusted process, and how it ended."""

    channel: Channel
    logits_fd: int
    code: int = 0            # exit code, or -signal
    peak_gb: float = 0.0
    patience_s: float = 0.0  # for its own end; then it is killed


@contextlib.contextmanager
def child_of(spec: dict, data: Data, file_fd: int, file_bytes: int, is_witness: bool) -> Iterator[Child]:
    """Start train.py in a fresh folder, restricted; at the end nothing of it is left, in whatever way it ends."""
    work = fresh_folder(Path(spec["folder"]), spec["code"], with_cache=not is_witness)
    tokens_read, tokens_write = os.pipe()
    events_read, events_write = os.pipe()
    log_read, log_write = os.pipe()
    with contextlib.suppress(AttributeError, PermissionError):  # Linux only, and the limit may be lower
        fcntl.fcntl(tokens_write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    logits_fd, logits_bytes = logits_memory(data.max_seq_len * data.vocab_size)
    trial = {"budget": spec["budget"], "seed": spec["seed"], "device": spec["device"], "is_witness": is_witness,
             "vocab_size": data.vocab_size, "max_seq_len": data.max_seq_len, "tokens_fd": tokens_read,
             "events_fd": events_write, "logits_fd": logits_fd, "logits_bytes": logits_bytes, "file_fd": file_fd,
             "file_bytes": file_bytes}
    cache = str(work / "cache")
    environment = sandbox.environment(str(work), cache) | {TRIAL_VARIABLE: json.dumps(trial)}
    if is_witness:
        environment["TORCHDYNAMO_DISABLE"] = "1"
    hidden = [str(path) for path in spec["hidden"]]
    command = sandbox.command(str(work), cache, [sys.executable, "train.py"], hidden)
    process = subprocess.Popen(command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=log_write,
                               stderr=log_write, start_new_session=True,
                               pass_fds=(tokens_read, events_write, logits_fd, file_fd))
    for fd in (tokens_read, events_write, log_write):
        os.close(fd)
    child = Child(Channel(tokens_write, events_read, log_read), logits_fd)
    child.channel.follow(process.pid)
    try:
        yield child
    finally:
        child.code, child.peak_gb = collect(process.pid, child.channel, child.patience_s)
        sandbox.sweep()
        child.channel.drain()
        child.channel.close()
        os.close(logits_fd)


def fresh_folder(folder: Path, code: str, with_cache: bool) -> Path:
    """An empty working folder: train.py, the fixed files, and a private copy of the baseline's compile cache.

    The baseline was compiled before a model had any say, so nothing that a candidate wrote reaches another one.
    """
    work = folder / "trial"
    remove(work)
    (work / "lab").mkdir(parents=True)
    (work / "train.py").write_bytes(code.encode("utf-8", "surrogateescape"))
    shutil.copyfile(ROOT / "prepare.py", work / "prepare.py")
    shutil.copyfile(ROOT / "lab" / "wire.py", work / "lab" / "wire.py")
    if with_cache:
        baseline.give_cache(folder, work)
    (work / "cache").mkdir(exist_ok=True)
    return work


def remove(folder: Path) -> None:
    """Delete a folder that a trial wrote: renamed files, locked folders and depth do not stop it."""
    if folder.exists():
        subprocess.run(["rm", "-rf", "--", str(folder)], check=True)


def collect(pid: int, channel: Channel, patience_s: float) -> tuple[int, float]:
    """Wait for a process's end, kill it when patience is over; (exit code or -signal, peak resident GB)."""
    until = time.monotonic() + patience_s
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            unit = 1 if sys.platform == "darwin" else 1024
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit / 1e9
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ContractBroken):
            channel.turn(time.monotonic() + 0.02, "")


def last_error(log: str, code: int) -> str:
    """Why a process ended by itself: the exception it named last, else its last line."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line[:200] for line in log.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return f"{(named or lines)[-1]} ({how})" if lines and code else f"ended before it was scored ({how})"
