"""Trials in flight: the slots, one trial at a time in each, and whichever ends first.

Slots are this machine, its cards or shares of its cores, or the GPUs of a cluster (lab/cluster.py).
Cards of different names or speeds are refused, since one could not reproduce a number of the other.
A trial that the user ends raises Stopped; one whose slot failed ends as MACHINE.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from lab import machine, runner, sandbox
from lab.commandline import MAX_SLOTS
from lab.corpus import Data
from lab.display import Display
from lab.ledger import Ending, SetupError, Trial, one_line
from lab.runner import Slot
from lab.session import Candidate, Session, Stopped

START_S = 1.0     # of training, to see whether a train.py still starts
CRASHES = 3       # in a row in one of several slots, before the incumbent is started there as a check
TOLERANCE = 0.03  # by which the speeds of cards in one session may differ
SPEED_S = 240.0   # for torch to start and to multiply on all cards at once
# The fastest of twelve rounds: the clock of a cold card rises during the first ones.
SPEED = """\
import torch
from torch.utils.benchmark import Timer
a = torch.randn(8192, 8192, device="cuda", dtype=torch.half)
product = Timer("a @ a", globals={"a": a})
fastest_s = min(product.timeit(20).mean for _ in range(12))
print(torch.cuda.get_device_name(), 2 * 8192**3 / fastest_s / 1e12, sep="\\n")
"""


class Fleet:
    """The slots, and which candidate runs in which."""

    def __init__(self, options: argparse.Namespace, session: Session, data: Data, display: Display,
                 interrupted: Callable[[], bool]):
        """Raises SetupError where a cluster has no slot for the session."""
        self.data, self.display, self.interrupted = data, display, interrupted
        self.slots, self.run, self.joined = list(options.places), runner.run, lambda slots: []
        if options.ray:
            from lab.cluster import Cluster

            cluster = Cluster(options.ray, session, data, display.say)
            self.run, self.joined = cluster.run, cluster.joined
        while not self.slots:
            self.slots = self.joined([])
        self.free_slots = self.slots[::-1]       # the next one last
        self.running: dict[Future[Trial], tuple[Slot, Candidate]] = {}
        self.clock_at: dict[int, float] = {}     # slot -> when the clock of its trial started
        self.crashes: Counter[int] = Counter()   # slot -> how many in a row
        self.threads = ThreadPoolExecutor(MAX_SLOTS)  # it starts them as they are needed

    @property
    def in_flight(self) -> tuple[Candidate, ...]:
        return tuple(candidate for _, candidate in self.running.values())

    def start(self, session: Session, candidate: Candidate) -> None:
        """Start a trial in the next free slot."""
        slot = self.free_slots.pop()
        future = self.threads.submit(self._try, session, candidate, slot, session.budget_s)
        self.running[future] = slot, candidate

    def wait(self, patience_s: float) -> tuple[Slot, Candidate, Trial] | None:
        """What ended first; its slot is the next free one. None while all run on. Raises Stopped."""
        new = self.joined(self.slots)
        self.slots, self.free_slots = self.slots + new, new + self.free_slots
        ended, _ = wait(self.running, patience_s, FIRST_COMPLETED)
        if not ended:
            return None
        future = ended.pop()
        slot, candidate = self.running.pop(future)
        self.free_slots.append(slot)
        self.clock_at.pop(slot.number, None)
        trial = future.result()
        self.crashes[slot.number] = self.crashes[slot.number] + 1 if trial.crashed else 0
        return slot, candidate, trial

    def suspects(self, slot: Slot) -> bool:
        """Whether one of several slots has crashed so often in a row that it may be at fault."""
        return len(self.slots) > 1 and self.crashes[slot.number] >= CRASHES

    def starts(self, session: Session, candidate: Candidate, slot: Slot) -> bool:
        """Whether a train.py starts now in a free slot. It runs in a thread, which binds itself to the slot's cores."""
        candidate, budget_s = replace(candidate, witness_below=0.0), min(START_S, session.budget_s)
        self.crashes[slot.number] = 0
        return not self.threads.submit(self._try, session, candidate, slot, budget_s).result().crashed

    def take_out(self, slot: Slot) -> bool:
        """Start nothing more in a free slot; False where no other one is left."""
        if len(self.slots) == 1:
            return False
        self.slots.remove(slot)
        self.free_slots.remove(slot)
        return True

    def left_s(self, budget_s: float) -> float:
        """Seconds until the trials in flight have trained, at most."""
        now = time.monotonic()
        return max(0.0, budget_s + max(self.clock_at.values(), default=now) - now)

    def close(self) -> None:
        self.threads.shutdown(wait=True, cancel_futures=True)

    def _try(self, session: Session, candidate: Candidate, slot: Slot, budget_s: float) -> Trial:
        """Run one trial. A referee that fails counts as the machine's fault until an incumbent starts."""

        def hear(kind: str, value: object) -> None:
            if kind == "clock":
                self.clock_at[slot.number] = time.monotonic()
            self.display.trial_event(slot.number, kind, value)

        if slot.cores:
            os.sched_setaffinity(0, slot.cores)  # of this thread; the referee inherits them
        try:
            trial = self.run(
                candidate.proposal.code, data=self.data, seed=candidate.seed, budget_s=budget_s,
                folder=session.runs, split=candidate.step.split, on_event=hear,
                is_baseline=candidate.is_baseline, witness_below=candidate.witness_below,
                last_try=candidate.last_try, interrupted=self.interrupted, slot=slot)
        except (runner.RefereeFailed, BrokenPipeError, FileNotFoundError) as error:  # runs/ is gone
            return Trial(None, f"the referee failed: {error}", candidate.seed, candidate.step.split, budget_s,
                         session.device, self.data.hash[:8], sandbox.level(), ending=Ending.MACHINE)
        if trial is None:
            raise Stopped("stopped by you, the trial under way with it")
        return replace(trial, slot=trial.slot or slot.name)


def slots_here(n_slots: int, n_gpus: int, device: str) -> list[Slot]:
    """Those that a command line asks for; n_gpus 0: all. Raises SetupError."""
    if n_gpus == n_slots == 1:
        card, hidden = machine.first_card() if device == "cuda" else ("", ())
        return [Slot(card=card, hidden=hidden)]
    if device == "cuda" and n_slots > 1:
        raise SetupError("--slots shares the cores of a machine without a GPU: say --gpus N")
    if device != "cuda" and n_gpus != 1:
        raise SetupError(f"--gpus needs CUDA, and trials run on {device} here: say --slots N")
    cards = equal_cards(n_gpus) if device == "cuda" else [("", ())] * n_slots
    if len(cards) == 1:
        return [Slot()]
    cores = sorted(os.sched_getaffinity(0), key=core_place) if sys.platform == "linux" else []
    share = len(cores) // len(cards)
    if cores and not share and device != "cuda":
        raise SetupError(f"--slots {n_slots} needs as many cores, and there are {len(cores)}")
    return [Slot(n, f"{'GPU' if card[0] else 'slot'} {n}", tuple(cores[n * share:(n + 1) * share]), *card)
            for n, card in enumerate(cards)]


def core_place(core: int) -> list[int]:
    """Processor, physical core and number: a slot gets whole cores, with all threads."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    paths = folder / "physical_package_id", folder / "core_id"
    return [*(int(path.read_text()) for path in paths if path.exists()), core]


def equal_cards(n: int) -> list[tuple[str, tuple[str, ...]]]:
    """n of machine.cards(), 0 for all, that are equally fast now. Raises SetupError."""
    found = dict(machine.cards()[: n or None])
    if len(found) < n:
        raise SetupError(f"--gpus {n}: there are {len(found)} here")
    with ThreadPoolExecutor(len(found)) as pool:
        measured = dict(zip(found, pool.map(speed_of, found), strict=True))
    if len(fit := alike(measured)) < len(found):
        listed = "; ".join(f"{uuid} {name}, {speed:.0f} TFLOP/s" for uuid, (name, speed) in measured.items())
        raise SetupError(f"these cards would not measure alike ({listed}): set CUDA_VISIBLE_DEVICES={','.join(fit)}, "
                         "which may run together")
    return list(found.items())


def speed_of(uuid: str) -> tuple[str, float]:
    """(name, TFLOP/s in half precision) of a card. Raises SetupError where it fails."""
    try:
        told = subprocess.check_output([sys.executable, "-c", SPEED], env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid},
                                       stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=SPEED_S)
    except subprocess.SubprocessError as error:
        why = one_line(str(error.stderr or error), 2000)[-200:]
        raise SetupError(f"{uuid} does not work ({why}): leave it out with CUDA_VISIBLE_DEVICES") from None
    name, speed = told.splitlines()[-2:]
    return name, float(speed)


def alike(measured: Mapping[str, tuple[str, float]]) -> list[str]:
    """The largest group of {UUID: (name, speed)} with one name and nearly one speed."""
    groups = [[uuid for uuid, (name, speed) in measured.items()
               if name == like and slowest <= speed <= (1 + TOLERANCE) * slowest]
              for like, slowest in measured.values()]
    return max(groups, key=len)
