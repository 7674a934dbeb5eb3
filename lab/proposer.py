"""Whose idea comes next: the model's, drafted while a trial runs, or the tuner's.

Promises: what could not be tried is remembered, in a file and in the next prompt, and what was
billed is never forgotten. Where the model is late or out, the tuner takes the turn with `auto`, and
with `llm` the model is waited for. It runs no trial and decides nothing about keeping: agent.py does.
"""

import argparse
import math
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from lab import confirm, edits, tuner
from lab.display import Display
from lab.edits import Flaw, ProposalError
from lab.ledger import Ending, Proposal, SetupError, Status, Trial, one_line
from lab.memory import Memory, called_usd, directions, read_program
from lab.model import Draft, Outage, Purse, Researcher, Unavailable, next_wait_s, rebase
from lab.prompt import LESSONS, Situation, build_prompt
from lab.session import COMBINED, Candidate, New, Session, Stopped
from lab.store import Store
from prepare import default_device

PATIENCE_S = 60.0       # how long the GPU waits for a draft under way; a model that is later counts as out
LESSONS_S = 120         # for the lessons at the end of a session; a model thinks for a minute
LEAST_IDEAS = 5         # that a process has tried; fewer are worth no lessons
TUNER_MEMORY = 150      # how many earlier experiments the tuner learns from
MOST_ASKED = 64         # answers under way at once
JOINED = "the incumbent with: "  # begins the description of two changes in one
MENDABLE = (Ending.CRASHED, Ending.MEMORY, Ending.UNREPEATABLE)  # endings that one call with the log may mend


@dataclass(frozen=True)
class Asked:
    """An answer of the model that is under way."""

    answer: Future[Draft]
    program: str              # program.md as its prompt quoted it
    crash: str = ""           # the reason of the crash that it mends

    @property
    def draft(self) -> Draft | None:
        """The answer, once a usable one is there."""
        is_there = self.answer.done() and not self.answer.cancelled() and not self.answer.exception()
        return self.answer.result() if is_there else None

    @property
    def usd(self) -> float:
        """What it has cost, once it is there."""
        if self.draft:
            return self.draft.proposal.usd
        is_error = self.answer.done() and not self.answer.cancelled()
        return getattr(self.answer.exception(), "usd", 0.0) if is_error else 0.0


class Proposer:
    """The role that has the ideas of one session: a model, the tuner, or both in turn."""

    def __init__(self, options: argparse.Namespace, store: Store, session: Session, researcher: Researcher | None,
                 display: Display, stopped: threading.Event):
        self.options, self.store, self.researcher = options, store, researcher
        self.display, self.stopped = display, stopped
        self.tried = store.fingerprints()
        self.memory = Memory(session.runs, store.earlier_sessions())
        self.program, self.fault = read_program(store.root), ""  # as it could last be read; why it cannot be now
        called = called_usd(session.runs)
        in_rows = sum(row.usd for row in session.rows)
        self.billed_usd = max(called, in_rows)      # without the answers under way; runs/ may have been deleted
        self.before_usd = self.billed_usd           # by earlier processes
        self.purse = Purse((options.max_usd or math.inf) - self.billed_usd)
        self.owed_usd = max(0.0, called - in_rows)  # billed and in no row yet: the model's next one pays
        self.n_before = len(session.history)
        self.n_unusable = 0                         # answers of this process that could not be tried
        self.back_at, self.failures = 0.0, 0        # when the model may be asked again, after so many faults in a row
        self.drafter = ThreadPoolExecutor(MOST_ASKED)  # it starts threads as they are needed
        self.asked: tuple[Asked, ...] = ()
        self.waiting_since: float | None = None     # a slot is free, and an answer under way
        # Changes that the incumbent may lack: (description, train.py before, and after)
        self.apart: deque[tuple[str, str, str]] = deque()

    def close(self) -> None:
        self.drafter.shutdown(wait=True, cancel_futures=True)

    @property
    def tuner_share(self) -> float:
        """Of the turns: none with `llm`, all without a model."""
        if self.researcher is None:
            return 1.0
        return 0.0 if self.options.researcher == "llm" else self.options.tuner_share

    def spent_usd(self) -> float:
        return self.billed_usd + sum(asked.usd for asked in self.asked)

    def spent_now_usd(self) -> float:
        """By this process."""
        return self.spent_usd() - self.before_usd

    def judged(self, before: Session, candidate: Candidate, status: Status, val_bpb: float | None) -> None:
        """Remember what the model said of the idea, and a change that is worth a trial with the incumbent.

        Something else may have been kept while this one ran. Where this one was kept as well, that other change is
        added to it; where it beat its own parent alone, it is added to that other one.
        """
        step = candidate.step
        if step.kind or step.area:
            self.memory.add_idea(experiment=candidate.number, kind=step.kind, area=step.area,
                                 reasoning=step.proposal.reasoning[:2000])
        rival = before.incumbent
        if rival is None or candidate.is_repeat or candidate.parent == rival.commit:
            return
        parent = next((e for e in before.history if e.commit == candidate.parent), None)
        if status is Status.KEEP:
            self.apart.append((rival.own.description, candidate.parent_code, before.code))
        elif val_bpb and parent and parent.val_bpb and val_bpb < parent.val_bpb:
            self.apart.append((candidate.proposal.description, candidate.parent_code, candidate.proposal.code))

    # -- whose turn

    def propose(self, session: Session, in_flight: Sequence[Candidate], is_tuners_turn: bool) -> New | None:
        """The next idea; None while trials are in flight and an answer is waited for.

        Raises Stopped, and SetupError when there is nothing left to propose with.
        """
        if idea := self._combined_idea(session):
            return idea
        is_alone = self.options.researcher == "llm"
        while self.researcher and not is_tuners_turn:
            asked = self._answered(session, in_flight)
            if idea := asked and self._model_idea(session, asked):
                self.waiting_since = None
                return idea
            if not asked and in_flight and (is_alone or self._is_patient()):
                return None
            if not asked and not is_alone:
                break
        return self._tuner_idea(session, in_flight)

    def _combined_idea(self, session: Session) -> New | None:
        """The incumbent with a change that was kept beside it; where lines conflict, a word to the model."""
        while self.apart:
            description, before, after = self.apart.popleft()
            words = JOINED + description.removeprefix(JOINED)
            merged = edits.merge(before, after, session.code)
            try:
                if merged is None:
                    raise ProposalError("The two were kept side by side and do not merge by themselves: write both "
                                        "into one.", Flaw.CONFLICT)
                edits.check(merged, self.tried)
            except ProposalError as error:
                if error.kind is not Flaw.TRIED:
                    self.memory.add_idea(rows=len(session.rows), description=words, reason=str(error))
                continue
            self.tried.add(edits.fingerprint(merged))
            return New(Proposal(words, merged, COMBINED))
        return None

    def _is_patient(self) -> bool:
        """Whether a free slot still waits for an answer under way, beside others that are busy."""
        if not self.asked:
            return False
        self.waiting_since = self.waiting_since or time.monotonic()
        if time.monotonic() - self.waiting_since < PATIENCE_S:
            return True
        self.waiting_since = None
        self._say_late()
        return False

    def _say_late(self) -> None:
        self.display.say(f"the model is {PATIENCE_S:.0f} s late: the tuner takes this turn")

    def _tuner_idea(self, session: Session, in_flight: Sequence[Candidate]) -> New:
        past = [e for e in confirm.ideas(session.history) if e.status != Status.BUSY][-TUNER_MEMORY:]
        codes = self.store.codes([e.number for e in past])
        told = [(codes[e.number], e.val_bpb) for e in past if e.number in codes]
        # What runs counts as no better than the worst so far, so that it is not proposed twice (a constant liar).
        worst = max((value for _, value in told if value is not None), default=None)
        told += [(c.proposal.code, worst) for c in in_flight if not c.is_repeat]
        drawn = tuner.variations(session.code, told, len(session.history) + len(in_flight), default_device())
        proposal = next((idea for idea in drawn if edits.fingerprint(idea.code) not in self.tried), None)
        if proposal is None:
            raise SetupError("train.py has no ALL_CAPS number left for the tuner to vary: add one, or set "
                             "ANTHROPIC_API_KEY for a model")
        self.tried.add(edits.fingerprint(proposal.code))
        return New(proposal)

    def _answered(self, session: Session, in_flight: Sequence[Candidate]) -> Asked | None:
        """The oldest answer that is there, after some patience; None while the model is late or out. Raises Stopped.

        Beside trials in flight nobody waits here: one of them may end at any moment.
        """
        must_wait = self.options.researcher == "llm" and not in_flight
        if must_wait and not self.asked and self.stopped.wait(max(0.0, self.back_at - time.monotonic())):
            raise Stopped("stopped by you")
        self.draft_ahead(session, in_flight)
        if not self.asked:
            return None
        patience_s = 0.0 if in_flight else None if must_wait else PATIENCE_S
        futures.wait([asked.answer for asked in self.asked], patience_s, futures.FIRST_COMPLETED)
        asked = next((asked for asked in self.asked if asked.answer.done()), None)
        if asked is None:
            if not in_flight:
                self._say_late()
            return None
        self.billed_usd += asked.usd
        self.owed_usd += asked.usd
        self.asked = tuple(other for other in self.asked if other is not asked)
        return asked

    def _model_idea(self, session: Session, asked: Asked) -> New | None:
        """An answer made to fit the incumbent of now; None where it cannot be used."""
        description = ""
        try:
            draft = asked.answer.result()
            description = draft.proposal.description
            if draft.answer.notes:
                self.memory.write_notes(draft.answer.notes)
            idea = self._fitted(session, draft, asked.program)
        except ProposalError as error:
            self._remember(session, error, description or error.description)
            return None
        except Unavailable as error:
            self._without_model(error)
            return None
        self.failures = 0
        if not asked.crash:
            return idea
        note = "; ".join(filter(None, (f"mended after: {asked.crash}", idea.proposal.note)))
        return replace(idea, proposal=replace(idea.proposal, note=note), is_mend=True)

    def _fitted(self, session: Session, draft: Draft, program: str) -> New:
        """The draft on the incumbent of now. Raises ProposalError where it does not merge, or was steered otherwise."""
        if directions(program) != directions(self._program()):
            raise ProposalError("It was written before the directions in program.md changed.", Flaw.CONFLICT)
        proposal = rebase(draft, session.code, self.tried).proposal
        self.tried.add(edits.fingerprint(proposal.code))
        paid_usd, self.owed_usd = self.owed_usd, 0.0
        return New(replace(proposal, usd=paid_usd), program=program, kind=draft.answer.kind, area=draft.answer.area)

    # -- the model

    def draft_ahead(self, session: Session, in_flight: Sequence[Candidate], n: int = 1) -> None:
        """Have the model's next n proposals made while trials run, each told of the others as far as they are known."""
        while len(self.asked) < n and session.incumbent and self._may_ask():
            known = [c.proposal for c in in_flight if not c.is_repeat]
            known += [asked.draft.proposal for asked in self.asked if asked.draft]
            now = self.memory.situation(session, known, self._program())
            self._submit(replace(now, n_writing=sum(not asked.answer.done() for asked in self.asked)))

    def mend_ahead(self, session: Session, candidate: Candidate, trial: Trial) -> None:
        """Have a crash mended meanwhile, by one call with what it printed; the mend is an experiment of its own."""
        is_models = candidate.proposal.source not in ("tuner", "baseline", COMBINED, confirm.LEFT_OUT)
        if is_models and not candidate.step.is_mend and trial.ending in MENDABLE and self._may_ask():
            now = self.memory.situation(session, (), self._program())
            told = f"{candidate.proposal.description}\n{trial.reason}\n{trial.log}"
            self._submit(replace(now, code=candidate.parent_code), trial.reason, candidate.proposal.code, told)

    def _submit(self, now: Situation, crash: str = "", *crashed: str) -> None:
        """Ask for a proposal, or for the mend of a crash with this train.py and log."""
        ask = self.researcher.repair if crashed else self.researcher.propose
        tried, does = frozenset(self.tried), "mends a crash" if crashed else "drafts the next proposal"

        def answer() -> Draft:
            self.display.show_researcher(f"{self.researcher.name} {does}")
            try:
                return ask(build_prompt(now), *crashed, tried, self.stopped, self.purse)
            finally:
                if sum(not asked.answer.done() for asked in self.asked) <= 1:  # this one is the last
                    self.display.show_researcher("")

        self.asked += (Asked(self.drafter.submit(answer), now.program, crash),)

    def lessons(self, session: Session, skipped: threading.Event) -> list[str]:
        """What the model says was learnt, kept for the next session on this data; no line where it is out."""
        if len(session.history) - self.n_before < LEAST_IDEAS or not self._may_ask() or skipped.is_set():
            return []
        name = self.researcher.name
        self.display.say(f"{name} writes down what was learnt, {LESSONS_S} s at most; Ctrl-C skips it")
        self.display.show_researcher(f"{name} writes down what was learnt")
        asked = build_prompt(self.memory.situation(session, (), self._program()), LESSONS)
        try:
            text, usd = self.researcher.write(asked, skipped, LESSONS_S, self.purse)
        except (ProposalError, Unavailable) as error:
            self.billed_usd += error.usd
            return [f"no lessons: {one_line(str(error), 160)}"]
        finally:
            self.display.show_researcher("")
        self.billed_usd += usd
        return self.memory.write_lessons(f"what was learnt, in the words of {name} (${usd:.2f}):", text)

    def _program(self) -> str:
        """program.md as it is now, or as it could last be read."""
        before = self.fault
        try:
            self.program, self.fault = read_program(self.store.root), ""
        except SetupError as error:
            self.fault = str(error)
        if self.fault not in ("", before):
            self.display.say(f"{self.fault}; its last text steers until then")
        return self.program

    def _may_ask(self) -> bool:
        return self.researcher is not None and time.monotonic() >= self.back_at

    def _remember(self, session: Session, error: ProposalError, description: str) -> None:
        """Write down an idea that never ran, so that it is not proposed again."""
        self.n_unusable += 1
        if error.kind is not Flaw.CONFLICT:  # which is nobody's fault
            self.failures += 1
            if error.refused or self.failures > 1:  # the same question would bring the same answer
                self.back_at = time.monotonic() + next_wait_s(self.failures, None, random.random())
        self.display.say(f"an idea that could not be tried: {one_line(str(error), 160)}")
        self.memory.add_idea(rows=len(session.rows), description=description, reason=one_line(str(error), 500))

    def _without_model(self, error: Unavailable) -> None:
        """The API is out: for a while, or for good, which only `auto` survives. Raises Stopped and SetupError."""
        is_alone = self.options.researcher == "llm"
        if error.kind in (Outage.STOPPED, Outage.BUDGET):
            raise Stopped("stopped by you" if error.kind is Outage.STOPPED else str(error))
        if error.fatal and is_alone:
            raise SetupError(str(error))
        if error.fatal:
            self.display.say(f"{error}; the tuner goes on alone")
            self.researcher = None
            return
        wait_s = next_wait_s(self.failures, error.retry_after_s, random.random())
        self.failures += 1
        self.back_at = time.monotonic() + wait_s
        meanwhile = "" if is_alone else "the tuner works, "
        self.display.say(f"{error}; {meanwhile}the model is asked again in {wait_s:.0f} s")
