"""Whose turn it is, and when a run stops by itself.

Turns follow from the rows and from what is in flight alone, so a restart changes none.
Nothing is started or stopped here: agent.py does.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum

from lab import confirm, ledger
from lab.ledger import Experiment, Proposal, Row, Status, Trial
from lab.session import Again, Candidate, New, Session, Stopped

# Experiments without a keep until the incumbent is measured again, since its number may be luck.
REPEAT_AFTER = 8
CONFIRM_SHARE = 0.4  # of --hours, at most


class Turn(Enum):
    """What comes next, unless it is one more trial of a saved train.py."""

    BASELINE = "baseline"
    TUNER = "tuner"
    MODEL = "model"
    WAIT = "wait"           # a trial in flight must end first


def next_step(session: Session, in_flight: Sequence[Candidate], tuner_share: float) -> Again | Turn:
    if busy := session.busy(in_flight):
        return Again(busy.experiment, busy.split)
    history, incumbent = confirm.ideas(session.history), session.incumbent
    if incumbent is None:
        return Turn.WAIT if in_flight else Turn.BASELINE
    if session.lacks_baseline:
        return Turn.WAIT if in_flight else Again(0)
    if not any(candidate.is_repeat for candidate in in_flight):
        if rival := overtaken([e for e in history if e.number not in session.lost], incumbent):
            return Again(rival.number)
        if ledger.misses(history) >= REPEAT_AFTER * n_tries(incumbent):
            return Again(incumbent.number)
    known = {e.number for e in history}
    sources = [e.own.source for e in history[1:]] + [c.proposal.source for c in in_flight if c.number not in known]
    return Turn.TUNER if tuner_credit(sources, tuner_share) >= 1 else Turn.MODEL


def n_tries(experiment: Experiment) -> int:
    """Its trials on the validation split, crashes included: one that crashes on every seed is not measured for ever."""
    crashes = [row for row in experiment.rows if row.val_bpb is None and row.split == "val"]
    return len(experiment.values("val")) + sum(row.status is not Status.BUSY for row in crashes)


def overtaken(history: Sequence[Experiment], incumbent: Experiment) -> Experiment | None:
    """The experiment that lies lowest below the incumbent's estimate, which repeats have raised.

    It gets as many trials as the incumbent had, unless it crashes. agent.judge keeps it where its mean stays below.
    """
    n_trials = len(incumbent.values("val"))
    fewer = [e for e in history if 0 < len(e.values("val")) < n_trials and e.rows[-1].val_bpb is not None]
    below = [e for e in fewer if e.val_bpb < incumbent.val_bpb]
    return min(below, key=lambda e: e.val_bpb, default=None)


def apart(session: Session) -> list[tuple[str, int, int]]:
    """(idea, experiment before it, experiment with it) of changes that the incumbent may lack.

    Another change was kept while an idea ran. If the idea was kept as well, the incumbent lacks that other change. If
    the idea only beat its own parent, the incumbent lacks the idea. Either way both together are worth a trial.
    """
    rows = [row for row in session.rows if row.split == "val" and row.status is not Status.BUSY]
    by_commit, by_number = {row.commit: row.experiment for row in rows}, {e.number: e for e in session.history}
    found, kept, known = [], None, set()
    for row in rows:
        before = by_commit.get(row.parent)
        if kept and before is not None and row.experiment not in known and row.parent != kept.commit:
            parent = by_number[before].val_bpb
            if row.status is Status.KEEP:
                found.append((kept.description, before, kept.experiment))
            elif None not in (row.val_bpb, parent) and row.val_bpb < parent:
                found.append((row.description, before, row.experiment))
        kept = row if row.status is Status.KEEP else kept
        known.add(row.experiment)
    return found


def judge_repeat(session: Session, experiment: Experiment, trial: Trial) -> tuple[Status, str]:
    """A repeat brings back a train.py whose mean is now below the incumbent's estimate."""
    incumbent = session.incumbent
    is_rival = trial.split == "val" and experiment.number != incumbent.number
    row = Row(experiment.commit, trial.val_bpb, status=Status.REPEAT, split=trial.split, budget=trial.budget)
    mean = replace(experiment, rows=(*experiment.rows, row)).val_bpb
    if is_rival and trial.witnessed and not trial.crashed and mean < incumbent.val_bpb:
        return Status.KEEP, f"lower than #{incumbent.number} in the mean of its trials"
    return Status.REPEAT, ledger.pinned(experiment, trial)


def tuner_credit(sources: Iterable[str], tuner_share: float) -> float:
    """Turns of its share that the tuner has not taken, the next one included.

    It never falls below -1: the tuner gives back at most one of the turns that it took while the model was out.
    """
    credit = tuner_share
    for source in sources:
        credit = min(2.0, max(-1.0, credit - (source == "tuner"))) + tuner_share
    return credit


class Limits:
    """The limits that the user gave: hours and experiments count from this process's start, dollars by session."""

    def __init__(self, options: argparse.Namespace, first: Session):
        """`first` is the session as this process found it."""
        self.options, self.n_before = options, n_ideas(first)
        self.started_at = time.monotonic()

    def __str__(self) -> str:
        """When the run will stop by itself, for the user."""
        hours, words = self.options.hours, []
        if self.options.experiments is not None:
            words.append(f"after {self.options.experiments} experiments")
        if hours is not None:
            end = datetime.now() + timedelta(hours=hours)
            words.append(f"after {hours:g} hours, at {end:%H:%M}")
        if self.options.max_usd is not None:
            words.append(f"at ${self.options.max_usd:g}")
        text = "stops " + (" or ".join(words) or "when you press Ctrl-C")
        if hours is None or self._has_time_to_confirm(1.1 * self.options.budget):
            return text
        return f"{text}: too soon to confirm, run python agent.py confirm afterwards"

    def allow(self, session: Session, in_flight: Sequence[Candidate]) -> bool:
        """Whether something may start beside what is in flight. Raises Stopped when a limit is reached."""
        options, limit = self.options, self.options.experiments
        if session.incumbent and limit is not None and n_ideas(session) - self.n_before >= limit:
            raise Stopped(f"--experiments {limit}")
        if options.max_usd is not None and session.spent_usd >= options.max_usd:
            raise Stopped(f"--max-usd {options.max_usd:g} (${session.spent_usd:.2f} spent)")
        if self._left_s(session) < trial_s(session):
            raise Stopped(f"--hours {options.hours:g}")
        is_full = limit is not None and self._n_tried(session, in_flight) >= limit
        return not (in_flight and is_full) or session.busy(in_flight) is not None

    def n_more(self, session: Session, in_flight: Sequence[Candidate]) -> int:
        """How many ideas can be tried after those in flight: no draft is paid for in vain."""
        if self._left_s(session) < 2 * trial_s(session):
            return 0
        limit = self.options.experiments
        return sys.maxsize if limit is None else max(0, limit - self._n_tried(session, in_flight))

    def confirm_s(self, session: Session) -> float:
        """The part of --hours that is kept free for confirm; 0 where that would be most of the night."""
        one_s = trial_s(session)
        if self.options.hours is None or len(session.history) < 2 or not self._has_time_to_confirm(one_s):
            return 0.0
        return math.ceil(2 * confirm.SEEDS / session.n_slots) * one_s

    def _has_time_to_confirm(self, one_s: float) -> bool:
        return 2 * confirm.SEEDS * one_s <= CONFIRM_SHARE * 3600 * self.options.hours

    def _n_tried(self, session: Session, in_flight: Sequence[Candidate]) -> int:
        """Ideas that this process has tried or is trying."""
        running = [c for c in in_flight if not c.is_repeat and c.proposal.source != "baseline"]
        return n_ideas(session) - self.n_before + len(running)

    def _left_s(self, session: Session) -> float:
        """Seconds of --hours that are left for ideas."""
        if self.options.hours is None:
            return math.inf
        return self.started_at + 3600 * self.options.hours - self.confirm_s(session) - time.monotonic()


def confirm_length(session: Session, choose: confirm.Choose) -> str:
    """How many trials confirm still needs and how long they take, in words, by a simulation of its choices."""
    n_trials, running = int(session.lacks_baseline), []
    session = replace(session, lacks_baseline=False)  # that one runs first and alone
    with suppress(Stopped):  # all is measured
        while step := choose(session, running):
            is_new = isinstance(step, New)
            n_trials += confirm.SEEDS if is_new else 1
            number, step = (-1, step) if is_new else (step.number, New(Proposal("", "", ""), step.split))
            running.append(Candidate(number, "", 0, step))
    seconds = math.ceil(n_trials / session.n_slots) * trial_s(session)
    took = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"
    return f"measures {n_trials} trial{'s' * (n_trials != 1)}, about {took}"


def n_ideas(session: Session) -> int:
    """Experiments that were an idea: neither the baseline nor a removal of confirm."""
    return sum(e.number > 0 and e.own.split == "val" and e.status != Status.BUSY for e in session.history)


def trial_s(session: Session) -> float:
    """Seconds that a trial takes from start to end, by the last few."""
    last = [row.total_seconds for row in session.rows[-5:] if row.val_bpb and row.budget == session.budget_s]
    return sum(last) / len(last) if last else 1.1 * session.budget_s
