"""Whose turn it is: the baseline's, the model's, the tuner's, or one more trial of what is saved
already.

Promises: a function of the rows and of what is in flight, so that a restart changes nothing.
"""

from collections.abc import Iterable, Sequence
from enum import Enum

from lab import confirm, ledger
from lab.session import Again, Candidate, Session

# Experiments without a keep until the incumbent is measured once more: luck does not last.
REPEAT_AFTER = 8


class Turn(Enum):
    """What the rows ask for next, where it is not one more trial of a saved train.py."""

    BASELINE = "baseline"
    TUNER = "tuner"
    MODEL = "model"
    WAIT = "wait"           # a trial in flight must end first


def next_step(session: Session, in_flight: Sequence[Candidate], tuner_share: float) -> Again | Turn:
    """What comes next."""
    if busy := session.busy(in_flight):
        return Again(busy.experiment, busy.split)
    history, best = confirm.ideas(session.history), session.incumbent
    if best is None:
        return Turn.WAIT if in_flight else Turn.BASELINE
    repeated = any(candidate.is_repeat for candidate in in_flight)
    if ledger.misses(history) >= REPEAT_AFTER * len(best.values("val")) and not repeated:
        return Again(best.number)
    sources = [experiment.own.source for experiment in history[1:]] + [c.proposal.source for c in in_flight]
    return Turn.TUNER if tuner_credit(sources, tuner_share) >= 1 else Turn.MODEL


def tuner_credit(sources: Iterable[str], tuner_share: float) -> float:
    """Turns of its share that the tuner has not taken, the next one counted; -1 at least, when it took some ahead."""
    credit = tuner_share
    for source in sources:
        credit = min(2.0, max(-1.0, credit - (source == "tuner"))) + tuner_share
    return credit
