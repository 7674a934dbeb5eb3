"""What the loop's parts need of a running session, as one frozen value that is replaced after each row.

Everything but program.md and the money follows from the rows, so a restart sees the same session. This
module also turns a step into a saved candidate, and a trial into a row. It decides nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from lab import edits, ledger
from lab.ledger import Experiment, Proposal, Row, Status, Trial, one_line
from lab.store import Store

NOTE_CHARS = 200      # of a note, where the name of a slot follows; a cell has 300


class Stopped(Exception):
    """Nothing more is started, or the user ended the trial. The message tells the user why."""


@dataclass(frozen=True)
class Again:
    """The next step: one more trial of a train.py that is already saved."""

    number: int
    split: str = "val"


@dataclass(frozen=True)
class New:
    """The next step: save a proposal and try it."""

    proposal: Proposal
    split: str = "val"
    program: str = ""          # program.md as the idea had read it; "" for an idea that read none
    is_steered: bool = False   # it is the first idea that read a changed program.md
    kind: str = ""             # what the model says the idea is: a knob, a mechanism, ...
    area: str = ""             # and what it changes
    is_mend: bool = False      # it mends a crash, so its own crash is not mended again


@dataclass(frozen=True)
class Candidate:
    """A saved train.py and the trial that it is about to have."""

    number: int
    commit: str
    seed: int
    step: New
    parent: str = ""                     # commit of the train.py that the idea changes
    parent_code: str = ""
    is_repeat: bool = False
    is_baseline: bool = False            # later trials are compared with its start-up and losses
    witness_below: float = float("inf")  # a lower val_bpb is examined by a witness
    last_try: bool = False               # counts even if the machine is busy

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
    program_read: str = ""               # program.md as the last idea had read it when this process began
    lost: frozenset[int] = frozenset()   # experiments whose train.py a clone has not brought along
    spent_usd: float = 0.0               # by rows and calls together
    n_slots: int = 1                     # trials that may run at once
    lacks_baseline: bool = False         # its measurements are gone: it runs again before anything else

    @property
    def incumbent(self) -> Experiment | None:
        return ledger.incumbent(self.history)

    @property
    def device(self) -> str:
        """All trials of a session run on one kind of device; "" before the first one."""
        return self.history[0].own.device if self.history else ""

    def experiment(self, number: int) -> Experiment | None:
        return next((e for e in reversed(self.history) if e.number == number), None)

    def busy(self, in_flight: Sequence[Candidate], splits: Collection[str] = ("val", "test")) -> Row | None:
        """The oldest trial that did not have its machine and has not run again."""
        not_now = self.lost | {candidate.number for candidate in in_flight}
        last = (e.rows[-1] for e in self.history if e.number not in not_now)
        waiting = (row for row in last if row.status is Status.BUSY and row.split in splits)
        return next((row for row in waiting if row.budget == self.budget_s), None)

    def n_busy(self, number: int) -> int:
        """How many of the experiment's last trials in a row did not have their machine."""
        experiment = self.experiment(number)
        rows = experiment.rows[::-1] if experiment else ()
        return next((n for n, row in enumerate(rows) if row.status is not Status.BUSY), len(rows))

    def after(self, row: Row, candidate: Candidate) -> "Session":
        """The session once this row of a candidate is written."""
        rows = (*self.rows, row)
        return replace(
            self, rows=rows, history=tuple(ledger.experiments(rows)),
            code=candidate.proposal.code if row.status is Status.KEEP else self.code)


def candidate_of(session: Session, in_flight: Sequence[Candidate], step: Again | New, store: Store) -> Candidate:
    """The saved train.py that a step measures, with a seed of its own. The same rows give the same seed."""
    if isinstance(step, New):
        return _saved(session, step, store)
    known = session.experiment(step.number)
    is_repeat, parent = known.status != Status.BUSY, known.own.parent
    proposal = Proposal(known.own.description, store.code(step.number), known.own.source)
    used = {row.seed for row in known.rows if row.status is not Status.BUSY}  # a busy trial draws no new seed
    used |= {candidate.seed for candidate in in_flight if candidate.number == step.number}
    seed = next(seed for seed in count(100 * step.number) if seed not in used)
    parent_code = "" if is_repeat or not parent else store.code_of(parent)
    return Candidate(step.number, known.own.commit, seed,
                     New(proposal, step.split), parent, parent_code, is_repeat)


def _saved(session: Session, step: New, store: Store) -> Candidate:
    """A new idea, saved as a commit."""
    number, proposal = store.next_number, step.proposal
    body = f"{proposal.reasoning}\n\nsource: {proposal.source}"
    if step.split == "val":  # a removal of confirm may still be proposed
        body += f"\nfingerprint: {edits.fingerprint(proposal.code)}"
    commit = store.save(number, proposal.code, f"experiment {number}: {proposal.description}", body)
    parent = session.incumbent.commit if session.incumbent else ""
    return Candidate(number, commit, 100 * number, step, parent, session.code)


def row_of(candidate: Candidate, trial: Trial, status: Status, note: str) -> Row:
    """The row of a trial that has been judged."""
    proposal = candidate.proposal
    parts = ledger.as_part(trial.reason), trial.note, note, proposal.note
    said = "; ".join(filter(None, parts))
    if trial.slot:  # at the end, where no long reason cuts it off
        said = "; ".join(filter(None, (one_line(said, NOTE_CHARS), ledger.ON + trial.slot)))
    return Row(
        commit=candidate.commit[:7], val_bpb=trial.val_bpb, memory_gb=trial.memory_gb, status=status,
        description=one_line(proposal.description), experiment=candidate.number, parent=candidate.parent[:7],
        seed=trial.seed, split=trial.split, budget=trial.budget, train_seconds=trial.train_seconds,
        total_seconds=trial.total_seconds, tokens_m=trial.tokens_m, params_m=trial.params_m,
        source=proposal.source, usd=proposal.usd, device=trial.device, data=trial.data,
        sandbox=trial.sandbox, note=said,
        when=ledger.utc_now())
