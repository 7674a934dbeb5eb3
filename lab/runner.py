"""One trial: a fresh folder, a referee of its own, its result as a value.

Promises: `run` returns within the referee's deadlines plus a little, whatever the trial does; when it returns, no
process of the trial is left; a crash is a Trial whose val_bpb is None. It decides nothing about keeping, and never
reads a number from what a trial printed.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lab import sandbox
from lab.corpus import Data
from lab.ledger import Trial, one_line
from lab.referee import DEFAULT_LIMITS, Limits

ROOT = Path(__file__).resolve().parent.parent
BACKSTOP_S = 60.0  # beside the referee's own limits; only a dead or hung referee meets it


class RefereeFailed(Exception):
    """The referee itself broke: our bug or the machine's fault, never a trial's. The message carries its stderr."""


def run(code: str, *, data: Data, seed: int, budget_s: float, folder: Path, split: str = "val",
        on_event: Callable[[str, object], None] = lambda kind, value: None,
        interrupted: Callable[[], bool] = lambda: False, limits: Limits = DEFAULT_LIMITS) -> Trial | None:
    """Run one train.py under the budget; None when `interrupted` became true before it ended.

    `folder` is emptied first; its sub-folder `cache`, the compile cache, is what the last call of keep_cache() left.
    """
    work = fresh_folder(folder, code)
    spec = {"data": str(data.folder), "split": split, "seed": seed, "budget": budget_s, "folder": str(work),
            "cache": str(work / "cache"), "parent": os.getpid(), "limits": asdict(limits)}
    sandbox.adopt_orphans()  # should the referee be killed, its trial comes to us
    errors = folder / "referee.log"
    with open(errors, "wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "lab.referee"], cwd=ROOT, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
                                   env=os.environ | sandbox.THREADS)
    process.stdin.write((json.dumps(spec) + "\n").encode())
    process.stdin.close()
    limit_s = sum(asdict(limits).values()) + 2 * budget_s + BACKSTOP_S
    try:
        result = follow(process, time.monotonic() + limit_s, on_event, interrupted)
    finally:
        end(process)
    if result is None and interrupted():
        return None
    if result is None:
        raise RefereeFailed(f"the referee ended with code {process.returncode}: "
                            + one_line(errors.read_text(errors="replace")[-2000:], 2000))
    return Trial(**result)


def follow(process: subprocess.Popen, deadline: float, on_event: Callable, interrupted: Callable) -> dict | None:
    """Pass the referee's events on until its result; None when it ends without one, or must."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and not interrupted():
            if not selector.select(0.1):
                on_event("tick", None)
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return None
            *lines, pending = (pending + data).split(b"\n")
            for message in map(json.loads, lines):
                if message["event"] == "result":
                    return message["value"]
                on_event(message["event"], message["value"])
    return None


def end(process: subprocess.Popen) -> None:
    """End the referee, which ends its trial; then whatever it could not reach."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    if process.returncode not in (0, 143):  # it was killed, and could not sweep
        sandbox.sweep()


def fresh_folder(folder: Path, code: str) -> Path:
    """An empty working folder with this train.py, the fixed prepare.py and a private copy of the kept compile cache.

    Every trial compiles into its own copy, so nothing that a discarded experiment wrote reaches another. What remains:
    a kept experiment could leave weights in the cache for its successors, whose train.py would have to load them.
    """
    work = folder / "trial"
    remove(work)
    work.mkdir(parents=True)
    (work / "train.py").write_bytes(code.encode())
    shutil.copyfile(ROOT / "prepare.py", work / "prepare.py")
    kept = folder / "cache"
    if kept.is_dir():
        shutil.copytree(kept, work / "cache", symlinks=True)
    else:
        (work / "cache").mkdir()
    return work


def keep_cache(folder: Path) -> None:
    """Make the compile cache of the trial that just ended the one that later trials start from."""
    remove(folder / "cache")
    os.rename(folder / "trial" / "cache", folder / "cache")


def remove(folder: Path) -> None:
    """Delete a folder that a trial wrote: renamed files, locked folders and depth do not stop it."""
    if folder.exists():
        subprocess.run(["rm", "-rf", "--", str(folder)], check=True)


def save_log(trial: Trial, runs: Path, number: int) -> None:
    """What a trial of an experiment printed beside what was measured, for the morning."""
    path = _log_path(runs, number, trial.seed)
    path.write_text(trial.log, encoding="utf-8")
    facts = {name: value for name, value in asdict(trial).items() if name != "log"}
    path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")


def read_log(runs: Path, number: int, seed: int) -> str:
    """What a trial printed; "" when its log is gone."""
    path = _log_path(runs, number, seed)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _log_path(runs: Path, number: int, seed: int) -> Path:
    return runs / f"{number:04d}-{seed}.log"
