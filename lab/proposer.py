"""Whose idea comes next: the model's, drafted while a trial runs, or the tuner's.

Promises: what could not be tried is remembered, in a file and in the next prompt, and what was
billed is never forgotten. Where the model is late or out, a further idea of its last answers
runs; then, with `auto`, the tuner takes the turn, and with `llm` the model is waited for. It runs
no trial and decides nothing about keeping: agent.py does.
"""

import argparse
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from lab import confirm, edits, ledger, tuner
from lab.display import Display
from lab.edits import Flaw, ProposalError
from lab.ledger import Ending, SetupError, Status, Trial, one_line
from lab.memory import Memory
from lab.model import Draft, Outage, Researcher, Unavailable, next_wait_s, rebase
from lab.money import Account
from lab.prompt import Situation, build_prompt
from lab.session import Candidate, New, Session, Stopped
from lab.steering import Steering, directions
from lab.store import Store
from prepare import default_device

PATIENCE_S = 60.0       # how long the GPU waits for a draft under way; a model that is later counts as out
TUNER_MEMORY = 300      # how many earlier experiments the tuner learns from
MOST_SPARE = 6          # further ideas that wait; the oldest go first
MENDABLE = (Ending.CRASHED, Ending.MEMORY, Ending.UNREPEATABLE)  # endings that one call with the log may mend


@dataclass(frozen=True)
class Asked:
    """An answer of the model that is under way."""

    answer: Future[Draft]
    program: str              # program.md as its prompt quoted it
    is_mend: bool = False


@dataclass(frozen=True)
class Spare:
    """A further idea of an answer, which runs when the model is late or out."""

    draft: Draft
    program: str


class Proposer:
    """The role that has the ideas of one session: a model, the tuner, or both in turn."""

    def __init__(self, options: argparse.Namespace, store: Store, session: Session, researcher: Researcher | None,
                 display: Display, stopped: threading.Event):
        self.options, self.store, self.researcher = options, store, researcher
        self.display, self.stopped = display, stopped
        self.tried = store.fingerprints()
        self.steering = Steering(store.root, display.say)
        self.memory = Memory(session.runs, store.earlier_sessions())
        self.account = Account(session.runs / "calls.jsonl", session.rows)
        self.n_unusable = 0                         # answers of this process that could not be tried
        self.back_at, self.failures = 0.0, 0        # when the model may be asked again, after so many faults in a row
        self.drafter = ThreadPoolExecutor(1)
        self.asked: deque[Asked] = deque()
        self.spare: deque[Spare] = deque(maxlen=MOST_SPARE)
        self.codes: dict[int, str] = {}             # train.py of the experiments that the tuner learns from

    def close(self) -> None:
        self.drafter.shutdown(wait=True, cancel_futures=True)

    @property
    def tuner_share(self) -> float:
        """Of the turns: none with `llm`, all without a model."""
        if self.researcher is None:
            return 1.0
        return 0.0 if self.options.researcher == "llm" else self.options.tuner_share

    def spent_usd(self) -> float:
        return self.account.spent_usd()

    def started(self, candidate: Candidate) -> None:
        """Remember what the model said of an idea whose trial has started."""
        step = candidate.step
        if step.kind or step.area:
            self.memory.add_idea(candidate.number, step.kind, step.area, step.proposal.reasoning)

    # -- whose turn

    def propose(self, session: Session, in_flight: Sequence[Candidate], is_tuners_turn: bool) -> New:
        """The next idea. Raises Stopped, and SetupError when there is nothing left to propose with."""
        while self.researcher and not is_tuners_turn:
            if self._ask(session, in_flight) and self._answered(self.asked[0]):
                idea = self._model_idea(session)
            elif not (idea := self._spare_idea(session)) and self.options.researcher != "llm":
                break
            if idea:
                return idea
        return self._tuner_idea(session)

    def _tuner_idea(self, session: Session) -> New:
        ideas = [e for e in confirm.ideas(session.history[-2 * TUNER_MEMORY:]) if e.status != Status.BUSY]
        ideas = ideas[-TUNER_MEMORY:]
        known = {e.number: self.codes.get(e.number) for e in ideas}
        known |= self.store.codes([number for number, code in known.items() if code is None])
        self.codes = {number: code for number, code in known.items() if code is not None}
        told = [(self.codes[e.number], e.val_bpb) for e in ideas if e.number in self.codes]
        proposal = tuner.propose(session.code, told, len(session.history),
                                 lambda code: edits.fingerprint(code) not in self.tried, default_device())
        if proposal is None:
            raise SetupError("train.py has no ALL_CAPS number left for the tuner to vary: add one, or set "
                             "ANTHROPIC_API_KEY for a model")
        self.tried.add(edits.fingerprint(proposal.code))
        return New(proposal)

    def _model_idea(self, session: Session) -> New | None:
        """The oldest answer, made to fit the incumbent of now; None where it cannot be used."""
        asked = self.asked.popleft()
        try:
            draft = asked.answer.result()
            self.spare.extend(Spare(further, asked.program) for further in draft.spare)
            if draft.answer.notes:
                self.memory.write_notes(draft.answer.notes)
            idea = self._fitted(session, draft, asked.program)
        except ProposalError as error:
            self._remember(session, error)
            return None
        except Unavailable as error:
            self._without_model(error)
            return None
        self.failures = 0
        return replace(idea, is_mend=asked.is_mend)

    def _spare_idea(self, session: Session) -> New | None:
        """A further idea of an earlier answer that still fits, the oldest first."""
        while self.spare:
            spare = self.spare.popleft()
            with suppress(ProposalError):  # it was a gift
                idea = self._fitted(session, spare.draft, spare.program)
                self.display.say("the model is late or out: a further idea of its last answers is tried")
                return idea
        return None

    def _fitted(self, session: Session, draft: Draft, program: str) -> New:
        """The draft on the incumbent of now. Raises ProposalError where it does not merge, or was steered otherwise."""
        try:
            if directions(program) != directions(self.steering.read()):
                raise ProposalError("It was written before the directions in program.md changed.", Flaw.CONFLICT)
            proposal = rebase(draft, session.code, self.tried).proposal
        except ProposalError as error:
            error.usd, error.source = draft.proposal.usd, draft.proposal.source
            error.description = draft.proposal.description
            raise
        self.tried.add(edits.fingerprint(proposal.code))
        proposal = replace(proposal, usd=proposal.usd + self.account.settle())
        return New(proposal, program=program, kind=draft.answer.kind, area=draft.answer.area)

    def _answered(self, asked: Asked) -> bool:
        """Whether the answer is there after some patience, which has no end with `llm` and nothing else to try."""
        until = time.monotonic() + (math.inf if self._must_wait() else PATIENCE_S)
        while not asked.answer.done() and time.monotonic() < until:
            self._pause(0.05)
        if not asked.answer.done():
            self.display.say(f"the model is {PATIENCE_S:.0f} s late: another idea takes this turn")
        return asked.answer.done()

    def _must_wait(self) -> bool:
        return self.options.researcher == "llm" and not self.spare

    def _pause(self, seconds: float) -> None:
        """Wait for the model. Raises Stopped."""
        if self.stopped.wait(max(0.0, seconds)):
            raise Stopped("stopped by you")

    # -- the model

    def draft_ahead(self, session: Session, in_flight: Sequence[Candidate]) -> None:
        """Have the model's next proposal made while a trial runs."""
        if not self.asked and session.incumbent and self._may_ask():
            self._draft(session, in_flight)

    def mend_ahead(self, session: Session, candidate: Candidate, trial: Trial) -> None:
        """Have a crash mended meanwhile, by one call with what it printed; the mend is an experiment of its own."""
        is_models = candidate.proposal.source not in ("tuner", "baseline", confirm.LEFT_OUT)
        if not is_models or candidate.step.is_mend or trial.ending not in MENDABLE or not self._may_ask():
            return
        code, log, reason = candidate.proposal.code, trial.log, trial.reason

        def mend(prompt: object, *rest: object) -> Draft:
            draft = self.researcher.repair(prompt, code, log, *rest)
            note = "; ".join(filter(None, (f"mended after: {reason}", draft.proposal.note)))
            return replace(draft, proposal=replace(draft.proposal, note=note))

        now = self.memory.situation(session, (), self.steering.read())
        self._submit(replace(now, code=candidate.parent_code), mend, is_mend=True)

    def _may_ask(self) -> bool:
        return self.researcher is not None and time.monotonic() >= self.back_at and self._left_usd() > 0

    def _left_usd(self) -> float:
        limit_usd = self.options.max_usd
        return math.inf if limit_usd is None else limit_usd - self.spent_usd()

    def _ask(self, session: Session, in_flight: Sequence[Candidate]) -> bool:
        """See that the model is being asked; False while it is out."""
        if self.asked:
            return True
        if self._left_usd() <= 0:
            raise Stopped(f"--max-usd {self.options.max_usd:g} (${self.spent_usd():.2f} spent)")
        if self._must_wait():
            self._pause(self.back_at - time.monotonic())
        if self._may_ask():
            self._draft(session, in_flight)
        return bool(self.asked)

    def _draft(self, session: Session, in_flight: Sequence[Candidate]) -> None:
        self.display.show_researcher(f"{self.researcher.name} drafts the next proposal")
        now = self.memory.situation(session, in_flight, self.steering.read())
        self._submit(now, self.researcher.propose)

    def _submit(self, now: Situation, make: Callable[..., Draft], is_mend: bool = False) -> None:
        tried, limit_usd = frozenset(self.tried), self._left_usd()
        answer = self.drafter.submit(lambda: make(build_prompt(now), tried, self.stopped, limit_usd))
        self.asked.append(Asked(answer, now.program, is_mend))

    def _remember(self, session: Session, error: ProposalError) -> None:
        """Write down an idea that never ran, so that it is not proposed again, and what it cost."""
        self.account.owe(error.usd)
        self.n_unusable += 1
        self.failures += 1
        if error.refused or self.failures > 1:  # the same question would bring the same answer
            self.back_at = time.monotonic() + next_wait_s(self.failures, None, random.random())
        self.display.say(f"an idea that could not be tried: {one_line(str(error), 160)}")
        idea = {"rows": len(session.rows), "when": ledger.utc_now(), "description": error.description,
                "source": error.source, "reason": one_line(str(error), 500), "usd": error.usd}
        self.memory.add_unapplied(idea)

    def _without_model(self, error: Unavailable) -> None:
        """The API is out: for a while, or for good, which only `auto` survives. Raises Stopped and SetupError."""
        self.account.owe(error.usd)
        if error.kind is Outage.STOPPED:
            raise Stopped("stopped by you")
        if error.kind is Outage.BUDGET:
            raise Stopped(str(error))
        if error.fatal and self.options.researcher == "llm":
            raise SetupError(str(error))
        if error.fatal:
            self.display.say(f"{error}; the tuner goes on alone")
            self.researcher = None
            return
        wait_s = next_wait_s(self.failures, error.retry_after_s, random.random())
        self.failures += 1
        self.back_at = time.monotonic() + wait_s
        meanwhile = "" if self.options.researcher == "llm" else "the tuner works, "
        self.display.say(f"{error}; {meanwhile}the model is asked again in {wait_s:.0f} s")
