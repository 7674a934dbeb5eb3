"""When a run stops by itself: the user's experiments, hours and dollars, and the time that confirm
needs.

Promises: pure functions of the rows, of what is in flight and of the clock; it stops nothing
itself.
"""

import argparse
import math
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from lab import confirm
from lab.ledger import Status
from lab.session import Candidate, Session, Stopped

CONFIRM_SHARE = 0.4  # of --hours, at most


class Limits:
    """The limits of one process, counted from its start."""

    def __init__(self, options: argparse.Namespace, first: Session):
        """`first` is the session as this process found it."""
        self.options, self.n_before = options, n_ideas(first)
        self.started_at = time.monotonic()

    def __str__(self) -> str:
        """When it will stop by itself, for the user."""
        hours, words = self.options.hours, []
        if self.options.experiments is not None:
            words.append(f"after {self.options.experiments} experiments")
        if hours is not None:
            end = datetime.now() + timedelta(hours=hours)
            words.append(f"after {hours:g} hours, at {end:%H:%M}")
        if self.options.max_usd is not None:
            words.append(f"at ${self.options.max_usd:g}")
        text = "stops " + (" or ".join(words) or "when you press Ctrl-C")
        if hours is None or self._fits(1.1 * self.options.budget):
            return text
        return f"{text}: too soon to confirm, run python agent.py confirm afterwards"

    def check(self, session: Session, in_flight: Sequence[Candidate]) -> None:
        """Raise Stopped when one of them is reached."""
        options = self.options
        if session.incumbent and self._enough(session, in_flight):
            raise Stopped(f"--experiments {options.experiments}")
        if options.max_usd is not None and session.spent_usd >= options.max_usd:
            raise Stopped(f"--max-usd {options.max_usd:g} (${session.spent_usd:.2f} spent)")
        if self._left_s(session) < _trial_s(session):
            raise Stopped(f"--hours {options.hours:g}")

    def allow_another(self, session: Session, in_flight: Sequence[Candidate]) -> bool:
        """Whether one more idea can be tried after those in flight: no draft is paid for in vain."""
        has_time = self._left_s(session) >= 2 * _trial_s(session)
        return has_time and not self._enough(session, in_flight)

    def confirm_s(self, session: Session) -> float:
        """The part of --hours kept free for confirm; 0 where that would be most of the night."""
        trial_s = _trial_s(session)
        if self.options.hours is None or len(session.history) < 2 or not self._fits(trial_s):
            return 0.0
        return 2 * confirm.SEEDS * trial_s

    def _fits(self, trial_s: float) -> bool:
        return 2 * confirm.SEEDS * trial_s <= CONFIRM_SHARE * 3600 * self.options.hours

    def _enough(self, session: Session, in_flight: Sequence[Candidate]) -> bool:
        """Whether this process has tried, or is trying, as many ideas as it may."""
        running = [c for c in in_flight if not c.is_repeat and c.proposal.source != "baseline"]
        n_new = n_ideas(session) - self.n_before + len(running)
        return self.options.experiments is not None and n_new >= self.options.experiments

    def _left_s(self, session: Session) -> float:
        """Seconds of --hours that are left for ideas."""
        if self.options.hours is None:
            return math.inf
        end = self.started_at + 3600 * self.options.hours - self.confirm_s(session)
        return end - time.monotonic()


def n_ideas(session: Session) -> int:
    """Experiments that were an idea: neither the baseline nor what confirm took out."""
    return sum(e.number > 0 and e.own.split == "val" and e.status != Status.BUSY for e in session.history)


def _trial_s(session: Session) -> float:
    """What a trial takes, start to end, by the last few."""
    last = [row.total_seconds for row in session.rows[-5:] if row.val_bpb]
    return sum(last) / len(last) if last else 1.1 * session.budget_s
