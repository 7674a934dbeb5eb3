"""Which kept changes still pay: each taken out of the final train.py alone, measured on the test split, ranked.

Promises: a removal is a clean three-way merge or none; it is compared with fresh seeds of the incumbent on the split
that chose nothing. A removal's rows are an experiment's (source LEFT_OUT, split test, never kept), so that its train.py
has its own commit; nothing that looks at the validation split ever sees them. It runs no trial: agent.py does.
"""

import math
import re
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import ledger
from lab.ledger import Experiment

LEFT_OUT = "leave-one-out"   # the source of a removal's row
_NAMED = re.compile(r"without #(\d+): ")


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


def without(parent: str, kept: str, final: str) -> str | None:
    """`final` with the change from `parent` to `kept` taken back; None where later changes build on it."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("final", "kept", "parent")
        for name, text in zip(names, (final, kept, parent), strict=True):
            (Path(folder) / name).write_bytes(text.encode())
        done = subprocess.run(["git", "merge-file", "-p", "-q", *names], cwd=folder, capture_output=True)
    return done.stdout.decode() if done.returncode == 0 and done.stdout.decode() != final else None


def name(kept: Experiment) -> str:
    """The description of a removal's row."""
    return f"without #{kept.number}: {kept.own.description}"


def ideas(history: Sequence[Experiment]) -> list[Experiment]:
    """The history without removals: what the search for the next idea goes by."""
    return [experiment for experiment in history if experiment.own.source != LEFT_OUT]


def removals(history: Sequence[Experiment]) -> dict[int, Experiment]:
    """The removals measured from the present incumbent, by the number of the change that was taken out."""
    best = ledger.incumbent(history)
    named = [(_NAMED.match(e.own.description), e) for e in history if e.own.source == LEFT_OUT]
    return {int(match[1]): e for match, e in named if match and best and e.own.parent == best.commit}


def test_values(experiment: Experiment) -> list[float]:
    return [row.val_bpb for row in experiment.rows if row.split == "test" and row.val_bpb is not None]


def ranking(history: Sequence[Experiment]) -> list[Worth]:
    """What each change is worth that was taken out, the most first; empty before the incumbent has a test value."""
    best, removed = ledger.incumbent(history), removals(history)
    known = test_values(best) if best else []
    if not known:
        return []
    sigma = _pooled([known, *map(test_values, removed.values()), test_values(history[0])])
    descriptions = {e.number: e.own.description for e in history}
    worth = []
    for number, experiment in removed.items():
        values = test_values(experiment)
        gain = statistics.fmean(values) - statistics.fmean(known) if values else None
        error = sigma * math.sqrt(1 / len(values) + 1 / len(known)) if values and sigma is not None else None
        worth.append(Worth(number, descriptions.get(number, ""), gain, error, len(values)))
    return sorted(worth, key=lambda w: math.inf if w.gain is None else w.gain, reverse=True)


def _pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups; None where no group has two values."""
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups if group)
    return math.sqrt(squares / freedom) if freedom else None
