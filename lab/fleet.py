"""Trials in flight: start one where a slot is free, wait for whichever ends first.

Today one slot, this machine: a thread around runner.run. The loop is written for any number of
slots, so several cards or a cluster change this file alone. It decides nothing. A trial that the
user ended is `Stopped`, never a value.
"""

import math
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from lab import runner, sandbox
from lab.corpus import Data
from lab.ledger import Ending, Trial
from lab.session import Candidate, Session, Stopped

START_S = 1.0  # of training, to see whether a train.py still starts


class Fleet:
    """The slots of this machine, and which candidate runs in which."""

    def __init__(self, data: Data, on_event: Callable[[int, str, object], None],
                 interrupted: Callable[[], bool]):
        """on_event(slot, kind, value) hears a trial's referee, from the slot's thread."""
        self.data, self.on_event, self.interrupted = data, on_event, interrupted
        self.free_slots = [0]
        self.running: dict[Future[Trial], tuple[int, Candidate]] = {}
        self.clock_at: dict[int, float] = {}  # slot -> when the clock of its trial started
        self.threads = ThreadPoolExecutor(len(self.free_slots))

    @property
    def in_flight(self) -> tuple[Candidate, ...]:
        return tuple(candidate for _, candidate in self.running.values())

    def start(self, session: Session, candidate: Candidate) -> int:
        """Start a trial and return its slot."""
        slot = self.free_slots.pop()
        future = self.threads.submit(self._try, session, candidate, slot, session.budget_s)
        self.running[future] = slot, candidate
        return slot

    def wait(self, patience_s: float) -> tuple[Candidate, Trial] | None:
        """The trial that ended first; None while all run on. Raises Stopped by the user."""
        ended, _ = futures.wait(self.running, patience_s, futures.FIRST_COMPLETED)
        if not ended:
            return None
        future = ended.pop()
        slot, candidate = self.running.pop(future)
        self.free_slots.append(slot)
        self.clock_at.pop(slot, None)
        return candidate, future.result()

    def starts(self, session: Session, candidate: Candidate) -> bool:
        """Whether a train.py starts on this machine now, seen in a slot that is free."""
        candidate, budget_s = replace(candidate, witness_below=-math.inf), min(START_S, session.budget_s)
        return not self._try(session, candidate, self.free_slots[-1], budget_s).crashed

    def left_s(self, budget_s: float) -> float:
        """Seconds of training before the next slot is free, at most."""
        now = time.monotonic()
        return max(0.0, budget_s + min(self.clock_at.values(), default=now) - now)

    def close(self) -> None:
        self.threads.shutdown(wait=True, cancel_futures=True)

    def _try(self, session: Session, candidate: Candidate, slot: int, budget_s: float) -> Trial:
        """One trial; a referee that falls over is the machine's fault until the incumbent starts."""

        def hear(kind: str, value: object) -> None:
            if kind == "clock":
                self.clock_at[slot] = time.monotonic()
            self.on_event(slot, kind, value)

        try:
            trial = runner.run(
                candidate.proposal.code, data=self.data, seed=candidate.seed, budget_s=budget_s,
                folder=session.runs, split=candidate.step.split, on_event=hear,
                is_baseline=candidate.is_baseline, witness_below=candidate.witness_below,
                last_try=candidate.last_try, interrupted=self.interrupted)
        except (runner.RefereeFailed, BrokenPipeError, FileNotFoundError) as error:  # runs/ is gone
            device = session.history[0].own.device if session.history else ""
            return Trial(
                None, f"the referee failed: {error}", candidate.seed, candidate.step.split, budget_s,
                device, self.data.hash[:8], sandbox.level(), ending=Ending.MACHINE)
        if trial is None:
            raise Stopped("stopped by you, the trial under way with it")
        return trial
