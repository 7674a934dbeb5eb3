"""confirm: does the gain hold, and which kept changes pay for it?

Promises: baseline and incumbent get fresh seeds on the test split, which decided no keep. A removal is
a clean three-way merge or none. Its rows have source LEFT_OUT and split test and are never kept, so that
the search does not see them. Rows of a longer budget count in no estimate. What to measure next follows
from the rows alone; agent.py measures it.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from lab import edits, ledger
from lab.ledger import LEFT_OUT, Experiment, Proposal, Status, one_line
from lab.session import Again, Candidate, New, Session, Stopped

SEEDS = 3                    # fresh seeds of each
_NAMED = re.compile(r"without #(\d+): ")

# What to start next, of the session and of what is in flight; None: a trial must end first.
Choose = Callable[[Session, Sequence[Candidate]], Again | New | None]


def plan(session: Session, each: bool, is_longer: bool, code: Callable[[int], str]) -> tuple[Choose, list[str]]:
    """Return (the rule for what to measure next, a line for each change that cannot be removed).

    each: every removal too; is_longer: one more seed of both at the longer budget; code: reads a train.py by number.
    """
    known = Counter() if each else test_trials(session)
    goal = {e.number: SEEDS + known[e.number] for e in (session.history[0], session.incumbent)}
    if is_longer:
        goal = dict.fromkeys(goal, 1 + min(known[number] for number in goal))
    removals, lines = taken_out(session, code) if each else ({}, [])
    return partial(next_measurement, goal=goal, removals=removals), lines


def taken_out(session: Session, code: Callable[[int], str]) -> tuple[dict[int, Proposal], list[str]]:
    """Return ({experiment: the final train.py without its change}, a line for each change that cannot be removed)."""
    found, lines, changes = {}, [], changes_in(session.history)
    gone = {e.number for e in session.history if e.status is Status.KEEP} - {kept.number for _, kept in changes}
    for kept in (session.experiment(number) for number in sorted(gone - {0})):
        lines.append(f"no longer in train.py: #{kept.number}: {one_line(kept.own.description, 100)}")
    for before, kept in changes:
        name = f"#{kept.number}: {one_line(kept.own.description, 100)}"
        try:
            merged = without(code(before.number), code(kept.number), session.code)
            edits.check(merged or "", ())
            found[kept.number] = Proposal(f"without {name}", merged, LEFT_OUT)
        except edits.ProposalError:
            lines.append(f"cannot be taken out alone, later changes build on it: {name}")
    return found, lines


def changes_in(history: Sequence[Experiment]) -> list[tuple[Experiment, Experiment]]:
    """Return (parent, experiment) of each change that the incumbent is made of, the oldest first."""
    by_commit, line = {e.commit: e for e in history}, [ledger.incumbent(history)]
    while before := by_commit.get(line[-1].own.parent):
        line.append(before)
    return [*pairwise(line[::-1])]


def without(parent: str, kept: str, final: str) -> str | None:
    """`final` with the change from `parent` to `kept` taken back; None where later changes build on it."""
    merged = edits.merge(kept, final, parent)
    return None if merged in (final, f"{final}\n") else merged


def next_measurement(session: Session, in_flight: Sequence[Candidate], goal: Mapping[int, int],
                     removals: Mapping[int, Proposal]) -> Again | New | None:
    """What to measure next, the least measured first, so that a stop leaves whole rounds.

    `goal` counts an experiment's trials on the test split. Raises Stopped when all is measured.
    """
    if session.lacks_baseline:
        return None if in_flight else Again(0)
    if busy := session.busy(in_flight, splits=("test",)):  # another split would change what is confirmed
        return Again(busy.experiment, busy.split)
    trials, measured = test_trials(session), measured_removals(session.history)
    trials.update(c.number for c in in_flight if c.step.split == "test")
    started = {candidate.proposal.description for candidate in in_flight}
    left = [(n - trials[number], Again(number, "test")) for number, n in goal.items()]
    for kept, proposal in removals.items():
        known = measured.get(kept)
        if known and known.status is not Status.CRASH:
            left.append((SEEDS - trials[known.number], Again(known.number, "test")))
        elif not known and proposal.description not in started:
            left.append((SEEDS, New(proposal, "test")))
    n_missing, step = max(left, key=lambda pair: pair[0], default=(0, None))
    if n_missing <= 0 and not in_flight:
        raise Stopped("all is measured")
    return step if n_missing > 0 else None


def test_trials(session: Session) -> Counter[int]:
    """Trials on the test split under the budget of now, crashes included, by experiment."""
    return Counter(row.experiment for row in session.rows if row.status is not Status.BUSY
                   and (row.split, row.budget) == ("test", session.budget_s))


def ideas(history: Sequence[Experiment]) -> list[Experiment]:
    """The history without removals: what the search for the next idea goes by."""
    return [experiment for experiment in history if experiment.own.source != LEFT_OUT]


def measured_removals(history: Sequence[Experiment]) -> dict[int, Experiment]:
    """The removals measured from the present incumbent, by the change that was taken out."""
    best = ledger.incumbent(history)
    named = [(_NAMED.match(e.own.description), e) for e in history if e.own.source == LEFT_OUT]
    return {int(name[1]): e for name, e in named if name and best and e.own.parent == best.commit}


def ranking(history: Sequence[Experiment]) -> list[tuple[int, str, float, float]]:
    """(number, description, gain, its standard error) of each change taken out, the most worth first.

    The gain is how much val_bpb rises without it on the test split, infinite when train.py then crashes.
    The error is NaN before there are two seeds of anything.
    """
    best, removals = ledger.incumbent(history), measured_removals(history)
    known = best.values("test") if best else []
    if not known:
        return []
    sides = {number: e.values("test") for number, e in removals.items() if e.status is not Status.BUSY}
    sigma = ledger.pooled_deviation([known, history[0].values("test"), *sides.values()])
    found = []
    for number, values in sides.items():
        description = removals[number].own.description.partition(": ")[2]
        gain = statistics.fmean(values) - statistics.fmean(known) if values else math.inf
        root = math.sqrt(1 / max(1, len(values)) + 1 / len(known))
        found.append((number, description, gain, math.nan if sigma is None else sigma * root))
    return sorted(found, key=lambda worth: worth[2], reverse=True)
