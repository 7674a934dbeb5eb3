"""The research loop: propose a train.py, try it for the budget, keep what lowers val_bpb, write everything down.

    python agent.py            research until stopped
    python agent.py report     what the rows say, as text, progress.png and report.html
    python agent.py confirm    baseline against incumbent, fresh seeds, on a split that no other trial sees
                               (--each: what every kept change is worth; --longer 3: at three times the budget)

It never asks a question. Kill it at any moment: the same command continues, and only trials under way are lost.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab import confirm, edits, ledger, opening, report, runner, sandbox, terminal
from lab.commandline import parse
from lab.corpus import Data
from lab.display import Display, progress_bar
from lab.fleet import Fleet
from lab.ledger import Ending, Proposal, SetupError, Status, Trial
from lab.model import Researcher
from lab.notify import notify
from lab.proposer import Proposer
from lab.runner import Slot
from lab.session import Again, Candidate, New, Session, Stopped, candidate_of, row_of
from lab.store import Store
from lab.turns import Limits, Turn, confirm_length, judge_repeat, next_step

ROOT = Path(__file__).resolve().parent
FAULTS = (SetupError, OSError)  # what the user or the machine must mend
BUSY_TRIES = 2          # disturbed trials that are run again; the next one is judged anyway, with a note
ANSWER_S = 0.2          # within which the first Ctrl-C is answered


# The keep rule ----------------------------------------------------------------------------------


def keep_below(session: Session, step: New) -> tuple[float, str]:
    """Return (the val_bpb below which a train.py is kept, the reason if that is not the incumbent's estimate).

    There is no significance test: repeats of the incumbent undo lucky keeps. Fewer statements are kept too if the loss
    is within one measured sigma of the session's lowest estimate; a bound by the latest one would creep upwards.
    """
    incumbent, noise = session.incumbent, ledger.sigma(session.history)
    if incumbent is None:
        return math.inf, ""
    if step.split == "test":  # what confirm takes out is never kept
        return -math.inf, ""
    n_saved = edits.n_statements(session.code) - edits.n_statements(step.proposal.code)
    if n_saved > 0 and noise is not None:
        kept = [e.val_bpb for e in session.history if e.status == Status.KEEP and e.val_bpb is not None]
        if min(kept) + noise > incumbent.val_bpb:
            why = f"simpler: {n_saved} statements fewer, within one sigma ({noise:.6f}) of the lowest"
            return min(kept) + noise, why
    return incumbent.val_bpb, ""


def judge(session: Session, candidate: Candidate, trial: Trial) -> tuple[Status, str]:
    """(verdict, note): what is lower than the incumbent's estimate is kept, if a witness has confirmed it."""
    if trial.ending == Ending.BUSY:
        return Status.BUSY, ""
    if candidate.is_repeat:
        return judge_repeat(session, session.experiment(candidate.number), trial)
    if trial.crashed:
        return Status.CRASH, ""
    below, why = keep_below(session, candidate.step)
    if trial.val_bpb >= below:
        return Status.DISCARD, ""
    if not trial.witnessed:
        return Status.DISCARD, "not kept: no witness has seen it"
    return Status.KEEP, why if session.incumbent and trial.val_bpb >= session.incumbent.val_bpb else ""


# The loop ---------------------------------------------------------------------------------------


class Loop:
    """The parts that work on one session. The session itself is a frozen value that every step replaces."""

    def __init__(self, options: argparse.Namespace, store: Store, first: Session, data: Data, display: Display,
                 researcher: Researcher | None):
        self.options, self.store, self.first, self.data, self.display = options, store, first, data, display
        self.stop = terminal.Stop()
        self.fleet = Fleet(options, first, data, display, self.stop.now.is_set)
        self.lost: list[Candidate] = []  # whose slot failed: they start again before anything else
        self.fixed = opening.fixed_files(ROOT, data)
        self.drawer = report.Drawer(ROOT)
        self.limits = Limits(options, first)
        self.proposer = Proposer(options, store, first, researcher, display, self.stop.asked)

    def work(self, session: Session, choose: confirm.Choose) -> tuple[Session, str]:
        """Start what `choose` says while a slot is free, judge what ends; return (last session, reason of the stop)."""
        why = ""
        while not why or self.fleet.in_flight:
            try:
                while not why and self.fleet.free_slots:
                    if self.stop.asked.is_set():
                        raise Stopped("stopped by you")
                    session = self.as_now(session)
                    if self.lost:
                        self.launch(session, self.lost.pop())
                    elif step := choose(session, self.fleet.in_flight):
                        self.start(session, step)
                    else:
                        break
                self.stop.answer(self.fleet.left_s(session.budget_s), self.display.say)
                if ended := self.fleet.wait(ANSWER_S):
                    session = self.judged(session, *ended)
            except Stopped as stopped:
                why = str(stopped)
        self.lost.clear()  # a candidate that has not run by now is dropped
        return session, why

    def as_now(self, session: Session) -> Session:
        return replace(session, spent_usd=self.proposer.spent_usd(), n_slots=len(self.fleet.slots),
                       lacks_baseline=opening.lacks_baseline(session))

    def choose(self, session: Session, in_flight: Sequence[Candidate]) -> Again | New | None:
        """What research starts next; None: not yet. Raises Stopped at a limit."""
        if not self.limits.allow(session, in_flight):
            return None
        step = next_step(session, in_flight, self.proposer.tuner_share)
        if step is Turn.BASELINE:
            return New(Proposal("baseline", self.store.train_code(), "baseline"))
        if step in (Turn.TUNER, Turn.MODEL):
            return self.proposer.propose(session, in_flight, step is Turn.TUNER)
        return None if step is Turn.WAIT else step

    def start(self, session: Session, step: Again | New) -> None:
        """Save, start, and have the next idea drafted meanwhile."""
        candidate = candidate_of(session, self.fleet.in_flight, step, self.store)
        below = math.inf if candidate.is_repeat else keep_below(session, candidate.step)[0]
        candidate = replace(
            candidate, witness_below=below, last_try=session.n_busy(candidate.number) >= BUSY_TRIES,
            is_baseline=(candidate.number, step.split) == (0, "val") and not runner.baseline_known(session.runs))
        self.launch(session, candidate)
        self.proposer.draft_ahead(session, self.fleet.in_flight, self.wanted(session))

    def launch(self, session: Session, candidate: Candidate) -> None:
        """Start a saved candidate in a free slot. Raises SetupError if a fixed file has changed."""
        opening.check_fixed(self.fixed, opening.fixed_files(ROOT, self.data), session.tag)
        self.display.trial_started(self.fleet.free_slots[-1].number, candidate.number, candidate.words,
                                   candidate.proposal.source, session.budget_s)
        self.fleet.start(session, candidate)

    def judged(self, session: Session, slot: Slot, candidate: Candidate, trial: Trial) -> Session:
        """Judge, write the row (the commit point), advance, show: in this order, so that a kill loses no row."""
        suspect = opening.suspects_machine(session, trial) or self.fleet.suspects(slot)
        if suspect and not self.starts(session, slot):
            if not self.fleet.take_out(slot):
                raise opening.machine_fault(ROOT, trial)
            self.display.slot_lost(slot.number, f"{slot.name} is out: {trial.reason}")
            self.lost.append(candidate)
            return session
        status, why = judge(session, candidate, trial)
        steered = ledger.STEERED * candidate.step.is_steered
        row = row_of(candidate, trial, status, "; ".join(filter(None, (why, steered))))
        for line in (*self.store.append(row), *opening.row_warnings(row, self.data)):
            self.display.say(line)
        session = session.after(ledger.parse_row(ledger.format_row(row)), candidate)  # rounded, as a restart reads it
        self.display.row_written(slot.number, session.rows[-1], session.rows)
        session.runs.mkdir(parents=True, exist_ok=True)  # the user may have cleaned up
        runner.save_log(trial, session.runs, candidate.number)
        if status == Status.KEEP:
            self.keep(session, candidate, slot)
        elif session.incumbent is None and status != Status.BUSY:
            raise SetupError(f"the baseline crashed: {trial.reason} (see runs/{session.tag}/); mend train.py, "
                             f"commit it and start again with --tag {session.tag}-2")
        elif status == Status.CRASH and self.wanted(session):
            self.proposer.mend_ahead(session, candidate, trial)
        self.proposer.judged(candidate)
        self.drawer.draw()
        return session

    def keep(self, session: Session, candidate: Candidate, slot: Slot) -> None:
        """Make a kept candidate the branch's head and train.py."""
        if note := self.store.advance(candidate.commit):
            self.display.say(note)
        runner.keep_model(session.runs, slot)
        if candidate.number:
            self.tell("best", session, experiment=candidate.number, val_bpb=session.incumbent.val_bpb)

    def starts(self, session: Session, slot: Slot) -> bool:
        """Whether the incumbent starts in a slot now, which tells the machine's fault from the candidate's."""
        if session.incumbent is None:
            return False
        self.display.say("a trial did not train: does the incumbent still start?")
        step = Again(session.incumbent.number)
        return self.fleet.starts(session, candidate_of(session, self.fleet.in_flight, step, self.store), slot)

    def wanted(self, session: Session) -> int:
        """How many ideas are worth drafting beside the trials in flight: one a slot, where the limits allow."""
        if self.options.word != "research" or self.stop.asked.is_set():
            return 0
        return min(session.n_slots, self.limits.n_more(session, self.fleet.in_flight))

    def begin(self) -> None:
        """Show the session, listen to the user, and do what the command line asks for."""
        session, incumbent = self.first, self.first.incumbent
        log = runner.read_log(session.runs, incumbent.number, incumbent.own.seed) if incumbent else ""
        self.display.show_session(session.rows, log)
        self.stop.listen()
        if self.options.word == "confirm":
            session, why = self.confirmed(session)
            self.tell("stop", session, why=why)
            return
        self.display.show_limits(str(self.limits))
        before_usd = self.proposer.spent_usd()
        session, why = self.work(session, self.choose)
        if self.limits.confirm_s(session) and not self.stop.asked.is_set():
            session, _ = self.confirmed(session)
        self.stop.asked.set()  # cancels drafts that are no longer needed; one more Ctrl-C skips the lessons
        self.proposer.close()
        lessons, usd = self.proposer.lessons(session, self.stop.now), self.proposer.spent_usd() - before_usd
        if lessons:
            self.drawer.draw()
        who = report.who_proposed(session.rows, len(self.first.rows), self.proposer.n_unusable, usd)
        for line in (*lessons, f"stopped: {why}", who):
            self.display.say(line)
        self.tell("stop", session, why=why)

    def confirmed(self, session: Session) -> tuple[Session, str]:
        """Measure fresh seeds on the test split, with --each every removal too; the last session, why it stopped."""
        choose, lines = confirm.plan(session, self.options.each, bool(self.options.longer), self.store.code)
        self.display.show_limits(confirm_length(self.as_now(session), choose))
        session, why = self.work(session, choose)
        lines += report.left_out(session.rows) if self.options.each else report.longer(session.rows)
        for line in (report.headline(session.rows), *lines):
            self.display.say(line)
        return session, why

    def tell(self, event: str, session: Session, **facts: object) -> None:
        facts |= {"tag": session.tag, "n_rows": len(session.rows)}
        notify(self.options.notify, event, report.headline(session.rows), **facts)

    def close(self) -> None:
        """Leave the branch with its last rows committed and nothing running."""
        self.stop.asked.set()
        self.stop.now.set()
        self.fleet.close()
        self.proposer.close()
        self.display.show_researcher("drawing the last report")
        try:
            self.drawer.finish()
            self.display.show_end()
            self.store.close()
        finally:
            self.store.release()


def run_session(options: argparse.Namespace) -> int:
    """Run `research` or `confirm`: open the session, work, close the branch; return the exit code."""
    with Display("autoresearch") as display:
        with progress_bar() as doing:
            store, session, data, researcher = opening.open_session(ROOT, options, display.say, doing)
        loop = Loop(options, store, session, data, display, researcher)
        display.title = f"autoresearch/{store.tag}"
        faults = []  # a fault from here on is not a refused start: exit code 1
        try:
            loop.begin()
        except FAULTS as error:
            faults.append(terminal.fault_line(error))
        finally:
            try:
                loop.close()
            except FAULTS as error:
                faults.append(terminal.fault_line(error))
        if faults:
            display.say(f"agent.py: {faults[0]}")
            notify(options.notify, "fault", faults[0], tag=store.tag)
    return 1 if faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    terminal.survive()
    options = parse(arguments, __doc__)
    os.chdir(ROOT)
    sandbox.hide()
    try:
        return report.morning(ROOT, options) if options.word == "report" else run_session(options)
    except FAULTS as error:
        print(f"agent.py: {terminal.fault_line(error)}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, SetupError) else 1
    except KeyboardInterrupt:
        print("agent.py: stopped before anything ran", file=sys.stderr, flush=True)
        return 0
    except Exception as error:  # noqa: BLE001  what nobody foresaw ends here, in one line
        runs = ROOT / "runs" / terminal.current_tag()
        print(f"agent.py: {(line := terminal.unforeseen(error, runs))}", file=sys.stderr, flush=True)
        notify(options.notify, "fault", line, tag=runs.name)
        return 1


if __name__ == "__main__":
    sys.exit(main())
