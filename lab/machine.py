"""Whether a trial had its machine to itself: the CPU time it wanted and did not get, and a fixed probe.

Promises: a trial gains nothing by faking this, since a busy verdict only means that it runs again.
Other trials of the session and the trial's own processes do not count. Where the kernel tells
nothing (macOS), no trial is called busy.
"""

import contextlib
import glob
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import psutil

from lab import sandbox

LOST = 0.10            # share of the machine that a trial may lack
SLOWER = 0.05          # by which a probe may lie above the session's median ...
SPREADS = 3.0          # ... and above so many of its usual spreads: a quiet virtual machine drifts by 18 %
LEAST_BUDGET_S = 5.0   # a shorter trial says nothing about the machine
PROBE_S = 0.2
PROBES = 50            # of the session, the last ones
PROBE_SIDE = 384       # matrices of the probe: 1.3 MB in all, beyond a core's own cache
MEMORY_BACK_S = 15.0   # how long GPU memory may take to come back
USED_S = 2.0           # how far back one asks who computed on the card
FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel's linux/proc_ns.h
LEFT_GB = 0.5          # GPU memory by which drivers and desktops vary


# Limit and use of memory in a container, by version 2 and 1 of control groups
CONTAINER = tuple((Path("/sys/fs/cgroup", limit), Path("/sys/fs/cgroup", used)) for limit, used in (
    ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")))


@dataclass(frozen=True)
class Reading:
    """Seconds since some start, at one moment."""

    wall: float
    busy: float       # of all cores, whoever used them
    stolen: float     # by the host of a virtual machine
    own: float        # by the agent, the referee and their trials
    waited: float     # by the trial's threads, ready to run and not run
    others: Mapping[int, float] | None = None  # of each other process; None in a container, which does not see them


def read(agent_pid: int) -> Reading | None:
    """The machine now; None where the kernel does not tell."""
    if sys.platform != "linux":
        return None
    cores, seconds, family = psutil.cpu_times(), _seconds(), {agent_pid, *sandbox.descendants(agent_pid)}
    own = sum(seconds.get(pid, 0.0) for pid in family)
    others = {pid: used for pid, used in seconds.items() if pid not in family}
    is_whole = os.readlink("/proc/self/ns/pid") == FIRST_PID_NAMESPACE
    busy = cores.user + cores.nice + cores.system + cores.irq + cores.softirq
    waited = sum(_waited_s(pid) for pid in sandbox.descendants(os.getpid()))
    return Reading(time.monotonic(), busy, cores.steal, own, waited, others if is_whole else None)


def _seconds() -> dict[int, float]:
    """Of every process that is seen, with those of its ended children that it waited for."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            ticks = file.read().rpartition(b")")[2].split()[11:15]  # utime, stime, cutime, cstime
            found[int(pid)] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return found


def _waited_s(pid: int) -> float:
    total_ns = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            total_ns += int(file.read().split()[1])
    return total_ns / 1e9


def lost_share(before: Reading | None, after: Reading | None, n_cores: int) -> float:
    """The share of its cores' time that the trial wanted and did not get.

    A thread may wait for the trial's own threads, and another program may run on an idle core. So the
    smaller of waiting time and other programs' time counts, plus all that the host of a VM stole.
    """
    if before is None or after is None:
        return 0.0
    strangers = max(0.0, (after.busy - before.busy) - (after.own - before.own))
    if after.others is not None:  # a trial could fake strangers by children that nobody waits for
        seen = [used - before.others.get(pid, 0.0) for pid, used in after.others.items()]
        strangers = min(strangers, sum(used for used in seen if used > 0))
    waited = max(0.0, after.waited - before.waited)
    stolen = max(0.0, after.stolen - before.stolen)
    own_stolen = stolen * n_cores / os.cpu_count()
    return (min(strangers, waited) + own_stolen) / max(n_cores * (after.wall - before.wall), 1e-6)


# A GPU, through NVIDIA's library: it takes no memory of the card and needs no torch -------


@cache
def _card():
    import pynvml

    pynvml.nvmlInit()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if visible.startswith("GPU-"):
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(visible)
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(visible or 0))


def cards() -> list[tuple[str, tuple[str, ...]]]:
    """(UUID, device files of all other cards) of every card that CUDA_VISIBLE_DEVICES does not hide, in its order."""
    import pynvml

    pynvml.nvmlInit()
    found = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    files = {pynvml.nvmlDeviceGetUUID(card): f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(card)}" for card in found}
    uuids, all_files = {str(n): uuid for n, uuid in enumerate(files)}, glob.glob("/dev/nvidia[0-9]*")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(files)).split(",")
    return [(uuid, tuple(path for path in all_files if path != files[uuid]))
            for uuid in (uuids.get(name, name) for name in names) if uuid in files]


def first_card() -> tuple[str, tuple[str, ...]]:
    """The first of cards(), where several are alike; ("", ()) for one card, a slice, or different ones."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):  # WSL knows no device files
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        names = [pynvml.nvmlDeviceGetName(card) for card in handles]
        if len(names) > 1 and len(set(names)) == 1:
            return (cards() or [("", ())])[0]
    return "", ()


def versions(device: str) -> dict[str, str]:
    """Of the software under a trial."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | ({"driver": _card()[0].nvmlSystemGetDriverVersion()} if device == "cuda" else {})


def card_used_gb() -> float:
    """Memory of the card that anybody uses."""
    library, card = _card()
    return library.nvmlDeviceGetMemoryInfo(card).used / 1e9


def card_is_shared(agent_pid: int) -> bool:
    """Whether strangers compute on it now, or heat or hardware (not a power cap) slows it.

    In a container strangers are not seen.
    """
    library, card = _card()
    own = {agent_pid, *sandbox.descendants(agent_pid)}
    strangers = {process.pid for process in library.nvmlDeviceGetComputeRunningProcesses(card)} - own
    with contextlib.suppress(library.NVMLError):  # a card that cannot say who computes: presence counts
        used = library.nvmlDeviceGetProcessUtilization(card, int((time.time() - USED_S) * 1e6))
        strangers &= {sample.pid for sample in used if sample.smUtil}
    slowed = (library.nvmlClocksThrottleReasonHwSlowdown
              | library.nvmlClocksThrottleReasonSwThermalSlowdown)
    reasons = library.nvmlDeviceGetCurrentClocksThrottleReasons(card)
    return bool(strangers) or bool(reasons & slowed)


def wait_for_card(idle_gb: float, patience_s: float = MEMORY_BACK_S) -> str:
    """Wait until an ended trial's memory is free for the next; a note when it is not."""
    until = time.monotonic() + patience_s
    while (held_gb := card_used_gb() - idle_gb) > LEFT_GB and time.monotonic() < until:
        time.sleep(0.05)
    if held_gb <= LEFT_GB:
        return ""
    return f"{held_gb:.1f} GB of GPU memory were still held {patience_s:.0f} s after its end"


# Memory -----------------------------------------------------------------------------------


def memory() -> tuple[int, int]:
    """(bytes that processes may still take, of all bytes): the machine's, or its container's where that has a limit."""
    found = psutil.virtual_memory()
    free, total = found.available, found.total
    for limit_path, used_path in CONTAINER:
        with contextlib.suppress(OSError, ValueError, KeyError):  # not of this version, or "max"
            limit, used = int(limit_path.read_text()), int(used_path.read_text())
            facts = dict(line.split() for line in (limit_path.parent / "memory.stat").read_text().splitlines())
            cached = int(facts["active_file"]) + int(facts["inactive_file"])  # given back when it is needed
            free, total = min(free, max(0, limit - used + cached)), min(total, limit)
    return free, total


# A fixed piece of work --------------------------------------------------------------------


def probe() -> float:
    """Seconds that a matrix product and a copy take; the median over PROBE_S."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((PROBE_SIDE, PROBE_SIDE), np.float32) for _ in "ab")
    seconds, until = [], time.perf_counter() + PROBE_S
    while time.perf_counter() < until:
        began = time.perf_counter()
        (a @ b).copy()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def slower(probes: Sequence[float], earlier: Sequence[float]) -> float:
    """How far a trial's probes lie above the session's median; 0 within its usual spread."""
    if len(earlier) < 6:
        return 0.0
    usual = statistics.median(earlier)
    spread = 1.4826 * statistics.median(abs(value - usual) for value in earlier)
    excess = max(probes) - usual
    return excess / usual if excess > max(SLOWER * usual, SPREADS * spread) else 0.0


def verdict(folder: Path, lost: float, probe_before: float | None, last_try: bool) -> str:
    """Why a trial that has just ended did not have its machine, or "".

    The probes of a trial that counts are kept, so a machine that stays slower becomes the usual one. A share of the
    machine takes no probes: where cores share a clock or a cache, its neighbours would look like a slower machine.
    """
    probes = [probe_before, probe()] if probe_before is not None else []
    earlier, path = [], folder / "probes.txt"
    with contextlib.suppress(OSError, ValueError):  # none yet, or damaged by a power cut
        earlier = [float(line) for line in path.read_text().splitlines()]
    by, why = slower(probes, earlier) if probes else 0.0, ""
    if lost > LOST:
        why = f"other programs took {lost:.0%} of the machine"
    elif by > 0:
        why = f"the machine was {by:.0%} slower than in this session before"
    if not why or last_try:
        path.write_text("\n".join(map(str, [*earlier, *probes][-PROBES:])))
    return why
