"""Trials in flight: start one where a slot is free, wait for whichever ends first.

The slots are this machine's (lab/slots.py) or a cluster's (lab/cluster.py). It decides nothing. A
trial that the user ended is `Stopped`, never a value; one whose slot failed ends MACHINE.
"""

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from lab import runner, sandbox
from lab.corpus import Data
from lab.ledger import Ending, Trial
from lab.runner import Slot
from lab.session import Candidate, Session, Stopped

START_S = 1.0      # of training, to see whether a train.py still starts
CRASHES = 3        # in a row in one slot of several: then it is asked whether the incumbent starts there
MOST_SLOTS = 1024


def open_fleet(options: argparse.Namespace, session: Session, data: Data, on_event: Callable[[int, str, object], None],
               interrupted: Callable[[], bool], say: Callable[[str], None]) -> "Fleet":
    """The slots that the command line asks for. Raises SetupError."""
    if not options.ray:
        return Fleet(options.places, data, on_event, interrupted)
    from lab.cluster import Cluster

    cluster = Cluster(options.ray, session, data, say)
    return Fleet(cluster.first_slots(), data, on_event, interrupted, cluster.run, cluster.joined)


class Fleet:
    """The slots, and which candidate runs in which."""

    def __init__(self, slots: Sequence[Slot], data: Data, on_event: Callable[[int, str, object], None],
                 interrupted: Callable[[], bool], run: Callable[..., Trial | None] = runner.run,
                 joined: Callable[[Sequence[Slot]], Sequence[Slot]] = lambda slots: ()):
        """on_event(slot, kind, value) hears a trial's referee, from the slot's thread.

        run: runner.run, or what does the same elsewhere. joined: of the slots here, which are new.
        """
        self.data, self.on_event, self.interrupted = data, on_event, interrupted
        self.run, self.joined = run, joined
        self.slots = list(slots)
        self.free_slots = self.slots[::-1]  # the next one last
        self.running: dict[Future[Trial], tuple[Slot, Candidate]] = {}
        self.clock_at: dict[int, float] = {}     # slot -> when the clock of its trial started
        self.crashes: Counter[int] = Counter()   # slot -> how many in a row
        self.threads = ThreadPoolExecutor(MOST_SLOTS)  # it starts them as they are needed

    @property
    def in_flight(self) -> tuple[Candidate, ...]:
        return tuple(candidate for _, candidate in self.running.values())

    def start(self, session: Session, candidate: Candidate) -> None:
        """Start a trial in the next free slot."""
        slot = self.free_slots.pop()
        future = self.threads.submit(self._try, session, candidate, slot, session.budget_s)
        self.running[future] = slot, candidate

    def wait(self, patience_s: float) -> tuple[Slot, Candidate, Trial] | None:
        """The trial that ended first, its slot the next free one; None while all run on. Raises Stopped by the user."""
        new = list(self.joined(self.slots))
        self.slots, self.free_slots = self.slots + new, new + self.free_slots
        ended, _ = futures.wait(self.running, patience_s, futures.FIRST_COMPLETED)
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
        """Whether so many trials crashed in a row in one slot of several that the slot may be why."""
        return len(self.slots) > 1 and self.crashes[slot.number] >= CRASHES

    def starts(self, session: Session, candidate: Candidate, slot: Slot) -> bool:
        """Whether a train.py starts now in a slot that is free."""
        candidate, budget_s = replace(candidate, witness_below=-math.inf), min(START_S, session.budget_s)
        self.crashes[slot.number] = 0
        # In a thread, whose cores are the slot's.
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
        """One trial; a referee that falls over is the machine's fault until the incumbent starts."""

        def hear(kind: str, value: object) -> None:
            if kind == "clock":
                self.clock_at[slot.number] = time.monotonic()
            self.on_event(slot.number, kind, value)

        if slot.cores:
            os.sched_setaffinity(0, slot.cores)  # of this thread, which the referee and its trial inherit
        try:
            trial = self.run(
                candidate.proposal.code, data=self.data, seed=candidate.seed, budget_s=budget_s,
                folder=session.runs, split=candidate.step.split, on_event=hear,
                is_baseline=candidate.is_baseline, witness_below=candidate.witness_below,
                last_try=candidate.last_try, interrupted=self.interrupted, slot=slot)
        except (runner.RefereeFailed, BrokenPipeError, FileNotFoundError) as error:  # runs/ is gone
            device = session.history[0].own.device if session.history else ""
            return Trial(
                None, f"the referee failed: {error}", candidate.seed, candidate.step.split, budget_s,
                device, self.data.hash[:8], sandbox.level(), ending=Ending.MACHINE)
        if trial is None:
            raise Stopped("stopped by you, the trial under way with it")
        return replace(trial, slot=slot.name)
