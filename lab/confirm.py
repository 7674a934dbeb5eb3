"""confirm: does the gain hold, and which kept changes pay for it?

Promises: baseline and incumbent get fresh seeds on the test split, which chose nothing. A removal is
a clean three-way merge or none; its rows are an experiment's (source LEFT_OUT, split test, never
kept), so that nothing that looks at the validation split sees it. It says what to measure next, from
the rows alone; agent.py's loop measures it.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from lab import edits, ledger
from lab.ledger import Experiment, Proposal, Row, Status, one_line
from lab.session import Again, Candidate, New, Session, Stopped

SEEDS = 3                    # fresh seeds of each
LEFT_OUT = "leave-one-out"   # the source of a removal's row

Choose = Callable[[Session, Sequence[Candidate]], "Again | New | None"]  # what to start next; None: wait for a trial
Work = Callable[[Session, Choose], tuple[Session, str]]
_NAMED = re.compile(r"without #(\d+): ")


# What to measure --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one call of confirm is to measure."""

    again: Mapping[int, int]  # experiment -> its trials on the test split when all is measured
    without: Mapping[int, Proposal] = field(default_factory=dict)  # kept experiment -> train.py without its change


def run(session: Session, each: bool, work: Work, code: Callable[[int], str], say: Callable[[str], None]) -> Session:
    """Say what fresh seeds on the test split say; with `each` also of every kept change, taken out alone.

    `work` measures what a function of the session asks for, until it raises Stopped; `code` reads an experiment's file.
    """
    from lab import report

    if not each or len(session.incumbent.values("test")) < SEEDS:
        session, _ = work(session, partial(next_step, plan=fresh_seeds(session)))
    say(report.headline(session.rows))
    if each:
        plan, lines = taken_out(session, code)
        session, _ = work(session, partial(next_step, plan=plan))
        for line in (*lines, *report.left_out(session.rows)):
            say(line)
    return session


def fresh_seeds(session: Session) -> Plan:
    """Baseline and incumbent, SEEDS times each."""
    first, best = session.history[0], session.incumbent
    counts = _test_trials(session.rows)
    return Plan({number: counts[number] + SEEDS for number in sorted({first.number, best.number})})


def taken_out(session: Session, code: Callable[[int], str]) -> tuple[Plan, list[str]]:
    """The final train.py without each kept change, and a line for each change that later ones build on."""
    removals, lines = {}, []
    for before, kept in pairwise(e for e in session.history if e.status == Status.KEEP):
        try:
            found = without(code(before.number), code(kept.number), session.code)
            edits.check(found or "", ())
            name = f"without #{kept.number}: {kept.own.description}"
            removals[kept.number] = Proposal(name, found, LEFT_OUT)
        except edits.ProposalError:
            lines.append(f"#{kept.number} cannot be taken out alone, later changes build on it: "
                         + one_line(kept.own.description, 100))
    return Plan({}, removals), lines


def next_step(session: Session, in_flight: Sequence[Candidate], plan: Plan) -> Again | New:
    """What to measure next, the least measured first, so that a stop leaves whole rounds. Raises Stopped at the end."""
    if busy := session.busy(in_flight):
        return Again(busy.experiment, busy.split)
    counts = _test_trials(session.rows) + Counter(c.number for c in in_flight if c.step.split == "test")
    number = max(plan.again, key=lambda n: plan.again[n] - counts[n], default=0)
    if plan.again and counts[number] < plan.again[number]:
        return Again(number, "test")
    return _next_removal(session, in_flight, plan, counts)


def _next_removal(session: Session, in_flight: Sequence[Candidate], plan: Plan, counts: Counter[int]) -> Again | New:
    measured = removals(session.history)
    started = {candidate.proposal.description for candidate in in_flight}
    for n_seeds in range(SEEDS):
        for kept, proposal in plan.without.items():
            known = measured.get(kept)
            if known is None and proposal.description not in started:
                return New(proposal, "test")
            if known and known.status != Status.CRASH and counts[known.number] <= n_seeds:
                return Again(known.number, "test")
    raise Stopped("all is measured")


def _test_trials(rows: Sequence[Row]) -> Counter[int]:
    return Counter(row.experiment for row in rows if row.split == "test" and row.status is not Status.BUSY)


def without(parent: str, kept: str, final: str) -> str | None:
    """`final` with the change from `parent` to `kept` taken back; None where later changes build on it."""
    merged = edits.merge(kept, final, parent)
    return None if merged == final else merged


def ideas(history: Sequence[Experiment]) -> list[Experiment]:
    """The history without removals: what the search for the next idea goes by."""
    return [experiment for experiment in history if experiment.own.source != LEFT_OUT]


def removals(history: Sequence[Experiment]) -> dict[int, Experiment]:
    """The removals measured from the present incumbent, by the number of the change that was taken out."""
    best = ledger.incumbent(history)
    named = [(_NAMED.match(e.own.description), e) for e in history if e.own.source == LEFT_OUT]
    return {int(match[1]): e for match, e in named if match and best and e.own.parent == best.commit}


# What came of it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worth:
    """What one kept change is worth in the final train.py, in bits per byte on the test split."""

    number: int              # of the experiment that was kept
    description: str
    gain: float | None       # by how much val_bpb rises without it; None when train.py crashes without it
    error: float | None      # standard error of `gain`; None before there are two seeds of anything
    seeds: int

    @property
    def within_noise(self) -> bool:
        """Two standard errors do not tell it from no gain: a candidate for removal."""
        return self.gain is not None and self.error is not None and self.gain < 2 * self.error


def test_values(experiment: Experiment) -> list[float]:
    return [row.val_bpb for row in experiment.rows if row.split == "test" and row.val_bpb is not None]


def ranking(history: Sequence[Experiment]) -> list[Worth]:
    """What each change is worth that was taken out, the most first; empty before the incumbent has a test value."""
    best, removed = ledger.incumbent(history), removals(history)
    known = test_values(best) if best else []
    if not known:
        return []
    sigma = ledger.pooled_deviation([known, *map(test_values, removed.values()), test_values(history[0])])
    descriptions = {e.number: e.own.description for e in history}
    worth = []
    for number, experiment in removed.items():
        values = test_values(experiment)
        gain = statistics.fmean(values) - statistics.fmean(known) if values else None
        error = sigma * math.sqrt(1 / len(values) + 1 / len(known)) if values and sigma is not None else None
        worth.append(Worth(number, descriptions.get(number, ""), gain, error, len(values)))
    return sorted(worth, key=lambda w: math.inf if w.gain is None else w.gain, reverse=True)
