"""Whose idea comes next: the model's, drafted while a trial runs, or the tuner's.

Promises: what could not be tried is remembered, in a file and in the next prompt, and what was
billed is never forgotten. Where the model is late or out, the tuner takes the turn with `auto`, and
with `llm` the model is waited for. It runs no trial and decides nothing about keeping: agent.py does.
"""

import argparse
import math
import random
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from lab import confirm, edits, ledger, tuner
from lab.display import Display
from lab.edits import Flaw, ProposalError
from lab.ledger import Ending, Proposal, SetupError, Status, Trial, one_line
from lab.memory import Memory, billed_usd, directions, read_program
from lab.model import Draft, Outage, Purse, Researcher, Unavailable, next_wait_s, rebase
from lab.prompt import LESSONS, Situation, build_prompt
from lab.session import Candidate, New, Session, Stopped
from lab.store import Store
from lab.turns import apart
from prepare import default_device

PATIENCE_S = 60.0       # how long the GPU waits for a draft under way; a model that is later counts as out
LATE = f"the model is {PATIENCE_S:.0f} s late: the tuner takes this turn"
LESSONS_S = 120         # for the lessons at the end of a session; a model thinks for a minute
LEAST_IDEAS = 5         # that a process has tried; fewer are worth no lessons
TUNER_MEMORY = 150      # how many earlier experiments the tuner learns from
MOST_ASKED = 64         # answers under way at once
JOINED = re.compile(r"the incumbent with #\d+: ")  # begins the description of two changes in one
MENDABLE = (Ending.CRASHED, Ending.MEMORY, Ending.UNREPEATABLE)  # endings that one call with the log may mend


@dataclass(frozen=True)
class Asked:
    """An answer of the model that is under way."""

    answer: Future[Draft]
    program: str              # program.md as its prompt quoted it
    mends: tuple[Candidate, Trial] | None = None  # a crash

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
        self.program, self.fault = read_program(store.root), ""  # its last readable text; why it cannot be read now
        self.billed_usd = billed_usd(session.runs, session.rows)  # without the answers under way
        self.purse = Purse((options.max_usd or math.inf) - self.billed_usd)
        # Billed and in no row yet: the model's next one pays
        self.owed_usd = self.billed_usd - sum(row.usd for row in session.rows)
        self.n_before = len(session.history)
        self.n_unusable = 0                         # answers of this process that could not be tried
        self.back_at, self.failures = 0.0, 0        # when the model may be asked again, after so many faults in a row
        self.drafter = ThreadPoolExecutor(MOST_ASKED)  # it starts threads as they are needed
        self.asked: tuple[Asked, ...] = ()
        self.exhausted: tuple[str, int, int] | None = None  # when no constant was left to vary
        self.waiting_since: float | None = None     # a slot is free, and an answer under way
        self.crashed: deque[tuple[Candidate, Trial]] = deque()  # to be mended as soon as the model may be asked
        self.put_off: set[int] = set()              # experiments whose mend failed once because the API was out
        self.program_read = session.program_read    # program.md as the model's last idea had read it
        # What was tried, combinations among it, or does not merge
        self.joined = {row.description for row in session.rows} | {i.get("description") for i in self.memory.ideas}

    def close(self) -> None:
        self.drafter.shutdown(wait=True, cancel_futures=True)

    @property
    def tuner_share(self) -> float:
        """Of the turns: none with `llm`, all without a model."""
        if self.researcher is None and not self.asked:
            return 1.0
        return 0.0 if self.options.researcher == "llm" else self.options.tuner_share

    def spent_usd(self) -> float:
        return self.billed_usd + sum(asked.usd for asked in self.asked)

    def judged(self, candidate: Candidate) -> None:
        """Remember what the model said of the idea."""
        step = candidate.step
        if candidate.number == 0:
            self.tried.add(edits.fingerprint(step.proposal.code))
        if step.kind or step.area or step.is_mend:
            self.memory.add_idea(experiment=candidate.number, kind=step.kind, area=step.area, is_mend=step.is_mend,
                                 reasoning=step.proposal.reasoning[:2000])

    def propose(self, session: Session, in_flight: Sequence[Candidate], is_tuners_turn: bool) -> New | None:
        """The next idea; None while an answer is waited for.

        Raises Stopped, and SetupError when there is nothing left to propose with.
        """
        if idea := self._combined_idea(session):
            return idea
        if is_tuners_turn and (idea := self._tuner_idea(session, in_flight)):
            return idea
        is_awaited = is_tuners_turn or self.options.researcher == "llm"  # nobody else can propose
        while self.researcher or self.asked:
            asked = self._answered(session, in_flight, is_awaited and not in_flight)
            if idea := asked and self._model_idea(session, asked):
                self.waiting_since = None
                return idea
            if not asked and in_flight and (is_awaited or self._is_patient()):
                return None
            if is_awaited and not in_flight:  # the caller checks the limits before the next round
                return None
            if not asked and not is_awaited:
                if idea := self._tuner_idea(session, in_flight):
                    return idea
                is_awaited = True
        if idea := self._tuner_idea(session, in_flight):  # the model is out for good
            return idea
        raise SetupError("train.py has no ALL_CAPS number left for the tuner to vary: add one, or set "
                         "ANTHROPIC_API_KEY for a model")

    def _combined_idea(self, session: Session) -> New | None:
        """The incumbent with a change that was measured beside it; where lines conflict, a word to the model."""
        for description, before, after in apart(session):
            words = one_line(f"the incumbent with #{after}: {JOINED.sub('', description)}")
            codes = self.store.codes((before, after)) if words not in self.joined else {}
            self.joined.add(words)
            if len(codes) < 2:
                continue
            merged = edits.merge(codes[before], codes[after], session.code)
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
            return New(Proposal(words, merged, ledger.COMBINED))
        return None

    def _is_patient(self) -> bool:
        """Whether a free slot still waits for an answer under way, beside others that are busy."""
        if not self.asked:
            return False
        self.waiting_since = self.waiting_since or time.monotonic()
        if time.monotonic() - self.waiting_since < PATIENCE_S:
            return True
        self.waiting_since = None
        self.display.say(LATE)
        return False

    def _tuner_idea(self, session: Session, in_flight: Sequence[Candidate]) -> New | None:
        """None where no constant is left to vary."""
        state = session.code, len(session.rows), len(in_flight)
        if state == self.exhausted:  # it is asked five times a second
            return None
        past = [e for e in confirm.ideas(session.history) if e.status != Status.BUSY][-TUNER_MEMORY:]
        codes = self.store.codes([e.number for e in past])
        told = [(codes[e.number], e.val_bpb) for e in past if e.number in codes]
        # What runs counts as no better than the worst so far, so that it is not proposed twice (a constant liar).
        worst = max((value for _, value in told if value is not None), default=None)
        told += [(c.proposal.code, worst) for c in in_flight if not c.is_repeat]
        drawn = tuner.variations(session.code, told, len(session.history) + len(in_flight), default_device())
        for idea in drawn:
            if (mark := edits.fingerprint(idea.code)) not in self.tried:
                self.tried.add(mark)
                return New(idea)
        self.exhausted = state
        return None

    def _answered(self, session: Session, in_flight: Sequence[Candidate], must_wait: bool) -> Asked | None:
        """The oldest finished answer; waits if no trial runs. None if the model is late or out. Raises Stopped.

        While trials are in flight it does not wait, since one of them may end at any moment.
        """
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
                self.display.say(LATE)
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
            if draft.answer.notes and not asked.mends:  # the prompt of a mend shows no notebook to build on
                self.memory.write_notes(draft.answer.notes)
            idea = self._fitted(session, draft, asked.program)
        except ProposalError as error:
            self._remember(session, error, description or error.description)
            return None
        except Unavailable as error:
            if asked.mends and asked.mends[0].number not in self.put_off:
                self.put_off.add(asked.mends[0].number)
                self.crashed.append(asked.mends)
            self._without_model(error)
            return None
        self.failures = 0
        if not asked.mends:
            return idea
        note = "; ".join(filter(None, (f"mended after: {ledger.as_part(asked.mends[1].reason)}", idea.proposal.note)))
        return replace(idea, proposal=replace(idea.proposal, note=note), is_mend=True)

    def _fitted(self, session: Session, draft: Draft, program: str) -> New:
        """Rebase a draft onto the present incumbent. Raises ProposalError if that fails or the directions changed."""
        if directions(program) != directions(self._program()):
            raise ProposalError("It was written before the directions in program.md changed.", Flaw.CONFLICT)
        proposal = rebase(draft, session.code, self.tried).proposal
        self.tried.add(edits.fingerprint(proposal.code))
        paid_usd, self.owed_usd = self.owed_usd, 0.0
        is_steered, self.program_read = self.program_read not in ("", program), program
        return New(replace(proposal, usd=paid_usd), program=program, is_steered=is_steered, kind=draft.answer.kind,
                   area=draft.answer.area)

    def draft_ahead(self, session: Session, in_flight: Sequence[Candidate], n: int = 1) -> None:
        """Ask for mends of crashes and up to n drafts while trials run; each prompt shows the ideas under way."""
        if n:
            self._mend(session)
        while len(self.asked) < n and session.incumbent and self._may_ask():
            known = [c.proposal for c in in_flight if not c.is_repeat]
            known += [asked.draft.proposal for asked in self.asked if asked.draft]
            now = self.memory.situation(session, known, self._program())
            self._submit(replace(now, n_writing=sum(not asked.answer.done() for asked in self.asked)))

    def mend_ahead(self, session: Session, candidate: Candidate, trial: Trial) -> None:
        """Have a crash mended meanwhile, by one call with what it printed; the mend is an experiment of its own."""
        is_new = not candidate.step.is_mend and not self.memory.is_mend(candidate.number)
        is_models = candidate.proposal.source not in ledger.NO_MODEL
        if self.researcher and is_new and is_models and trial.ending in MENDABLE:
            self.crashed.append((candidate, trial))
            self._mend(session)

    def _mend(self, session: Session) -> None:
        while self.crashed and self._may_ask():
            candidate, trial = self.crashed.popleft()
            if candidate.step.program and directions(candidate.step.program) != directions(self._program()):
                continue  # it was another direction's idea
            now = self.memory.situation(session, (), self._program())
            self._submit(replace(now, code=candidate.parent_code), (candidate, trial))

    def _submit(self, now: Situation, mends: tuple[Candidate, Trial] | None = None) -> None:
        """Ask for a proposal, or for the mend of a crash."""
        tried, does, crash = frozenset(self.tried), "mends a crash" if mends else "drafts the next proposal", ()
        ask = self.researcher.repair if mends else self.researcher.propose
        if mends:
            candidate, trial = mends
            crash = candidate.proposal.code, f"{candidate.proposal.description}\n{trial.reason}\n{trial.log}"

        def answer() -> Draft:
            self.display.show_researcher(f"{self.researcher.name} {does}")
            try:
                return ask(build_prompt(now), *crash, tried, self.stopped, self.purse)
            finally:
                if sum(not asked.answer.done() for asked in self.asked) <= 1:  # this one is the last
                    self.display.show_researcher("")

        self.asked += (Asked(self.drafter.submit(answer), now.program, mends),)

    def lessons(self, session: Session, skipped: threading.Event) -> list[str]:
        """What the model says was learnt, kept for the next session on this data; no line where it is out."""
        if len(session.history) - self.n_before < LEAST_IDEAS or not self._may_ask() or skipped.is_set():
            return []
        name = self.researcher.name
        self.display.say(f"{name} writes down what was learnt, {LESSONS_S} s at most; Ctrl-C skips it")
        asked = build_prompt(self.memory.situation(session, (), self._program()), LESSONS)
        try:
            text, usd = self.researcher.write(asked, skipped, LESSONS_S, self.purse)
        except (ProposalError, Unavailable) as error:
            self.billed_usd += error.usd
            return [f"no lessons: {one_line(str(error), 160)}"]
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
        """Handle an outage: ask again later, or with `auto` go on with the tuner. Raises Stopped and SetupError."""
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
