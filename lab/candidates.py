"""From a step to a candidate, and from a trial to a row."""

from collections.abc import Sequence

from lab import edits, ledger
from lab.ledger import Proposal, Row, Status, Trial, one_line
from lab.session import Again, Candidate, New, Session
from lab.store import Store


def candidate_of(session: Session, in_flight: Sequence[Candidate], step: Again | New, store: Store) -> Candidate:
    """The train.py that a step measures, saved, with a seed of its own; the same rows give the same seed."""
    if isinstance(step, New):
        number = store.next_number
        commit = save(store, number, step)
        return Candidate(number, commit, 100 * number, step, session.code)
    known = session.experiment(step.number)
    is_repeat = known.status != Status.BUSY
    note = "" if is_repeat else known.own.note
    proposal = Proposal(known.own.description, store.code(step.number), known.own.source, note=note)
    n_trials = len(known.rows) + sum(candidate.number == step.number for candidate in in_flight)
    parent = "" if is_repeat or not known.own.parent else store.code_of(known.own.parent)
    return Candidate(step.number, known.own.commit, 100 * step.number + n_trials, New(proposal, step.split), parent,
                     is_repeat)


def save(store: Store, number: int, step: New) -> str:
    proposal = step.proposal
    body = f"{proposal.reasoning}\n\nsource: {proposal.source}"
    if step.split == "val":  # what confirm only takes out may still be proposed
        body += f"\nfingerprint: {edits.fingerprint(proposal.code)}"
    return store.save(number, proposal.code, f"experiment {number}: {proposal.description}", body)


def row_of(session: Session, candidate: Candidate, trial: Trial, status: Status, note: str) -> Row:
    best, proposal, before = session.incumbent, candidate.proposal, session.experiment(candidate.number)
    parent = before.own.parent if before else best.commit if best else ""
    notes = "; ".join(filter(None, (trial.reason, trial.note, note, proposal.note)))
    return Row(commit=candidate.commit[:7], val_bpb=trial.val_bpb, memory_gb=trial.memory_gb, status=status,
               description=one_line(proposal.description), experiment=candidate.number, parent=parent[:7],
               seed=trial.seed, split=trial.split, budget=trial.budget, train_seconds=trial.train_seconds,
               total_seconds=trial.total_seconds, tokens_m=trial.tokens_m, params_m=trial.params_m,
               source=proposal.source, usd=proposal.usd, device=trial.device, data=trial.data, sandbox=trial.sandbox,
               note=notes, when=ledger.utc_now())
