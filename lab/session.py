"""What the rooms need of a running session, as one value that is made anew after each row.

Promises: nothing here changes in place, and everything but program.md and the money follows from the
rows. It decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import ledger
from lab.ledger import Experiment, Proposal, Row, Status


class Stopped(Exception):
    """Nothing more is to be started, or the user ended the trial. The message says why, for the user."""


@dataclass(frozen=True)
class Again:
    """What to do next: one more trial of a train.py that is already saved."""

    number: int
    split: str = "val"


@dataclass(frozen=True)
class New:
    """What to do next: save a proposal and try it."""

    proposal: Proposal
    split: str = "val"
    program: str = ""          # program.md as the idea had read it; "" for an idea that read none
    kind: str = ""             # what the model says that the idea is: a knob, a mechanism, ...
    area: str = ""             # and where
    is_mend: bool = False      # it mends a crash, so its own crash is not mended again


@dataclass(frozen=True)
class Candidate:
    """A saved train.py and the trial that it is about to have."""

    number: int
    commit: str
    seed: int
    step: New
    parent_code: str = ""                # the train.py that the idea changes
    is_repeat: bool = False
    is_baseline: bool = False            # its start-up and losses are what later trials are compared with
    witness_below: float = float("inf")  # a lower val_bpb is examined by a witness
    last_try: bool = False               # a busy machine is no reason to try again

    @property
    def proposal(self) -> Proposal:
        return self.step.proposal

    @property
    def words(self) -> str:
        return f"again: {self.proposal.description}" if self.is_repeat else self.proposal.description


@dataclass(frozen=True)
class Session:
    """One session as its rows tell it."""

    tag: str
    runs: Path                           # folder of its logs
    budget_s: float
    corpus: Mapping[str, object]         # its name and sizes, for the prompt
    rows: tuple[Row, ...] = ()           # in the order of results.tsv
    history: tuple[Experiment, ...] = ()
    code: str = ""                       # the incumbent's train.py
    program_judged: str = ""             # program.md as the idea of the last row had read it
    spent_usd: float = 0.0               # by rows and calls together

    @property
    def incumbent(self) -> Experiment | None:
        return ledger.incumbent(self.history)

    def experiment(self, number: int) -> Experiment | None:
        return next((e for e in reversed(self.history) if e.number == number), None)

    def busy(self, in_flight: Sequence[Candidate]) -> Row | None:
        """The oldest trial that did not have its machine and has not run again."""
        running = {candidate.number for candidate in in_flight}
        last = (e.rows[-1] for e in self.history if e.number not in running)
        return next((row for row in last if row.status is Status.BUSY), None)

    def n_busy(self, number: int) -> int:
        """How often in a row the experiment's last trials did not have their machine."""
        experiment = self.experiment(number)
        rows = experiment.rows[::-1] if experiment else ()
        return next((n for n, row in enumerate(rows) if row.status is not Status.BUSY), len(rows))

    def after(self, row: Row, candidate: Candidate) -> "Session":
        """The session once this row of a candidate is written."""
        history, before = self.history, self.experiment(row.experiment)
        grown = Experiment(row.experiment, (*(before.rows if before else ()), row))
        history = tuple(grown if e is before else e for e in history) if before else (*history, grown)
        return replace(self, rows=(*self.rows, row), history=history,
                       code=candidate.proposal.code if row.status is Status.KEEP else self.code,
                       program_judged=candidate.step.program or self.program_judged)


def who_proposed(rows: Sequence[Row], n_unusable: int, usd: float) -> str:
    """The last line of a run: "12 experiments: model 9 (2 repaired), tuner 3; 1 answer not usable; $0.41"."""
    own = [row for row in rows if row.status in (Status.KEEP, Status.DISCARD, Status.CRASH)
           and row.split == "val" and row.source != "baseline"]
    models = [row for row in own if row.source != "tuner"]
    n_repaired = sum("repaired" in row.note or "mended" in row.note for row in models)
    names = sorted({row.source for row in models})
    parts = [f"{names[0] if len(names) == 1 else 'models'} {len(models)}"
             + (f" ({n_repaired} repaired)" if n_repaired else "")] if models else []
    parts += [f"tuner {len(own) - len(models)}"] if len(own) > len(models) else []
    answers = f"{n_unusable} answer{'s' * (n_unusable != 1)} not usable" if n_unusable else ""
    count = f"{len(own)} experiment{'s' * (len(own) != 1)}"
    return "; ".join(filter(None, (": ".join(filter(None, (count, ", ".join(parts)))), answers, f"${usd:.2f}")))
