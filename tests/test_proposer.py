"""Whose idea comes next: the proposer alone, without a repository, beside a researcher that says what it is told."""

import argparse
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import BETTER, TRAIN, WORSE

from lab import ledger, proposer, report
from lab.edits import Answer, Flaw, ProposalError
from lab.ledger import Ending, Proposal, Row, SetupError, Status, Trial
from lab.memory import Memory
from lab.model import Draft, Outage, Purse, Unavailable
from lab.session import Candidate, New, Session, Stopped

OTHER = (BETTER[0], "LEARNING_RATE = 3.0  # of SGD")
PROGRAM = "# Goal\n\n## Directions\n\nAnything.\n"


class Shelf:
    """What the proposer asks of a store."""

    def __init__(self, root: Path):
        self.root, self.known = root, {}

    def fingerprints(self) -> set[str]:
        return set()

    def earlier_sessions(self) -> list:
        return []

    def codes(self, numbers: list[int]) -> dict[int, str]:
        self.asked = numbers
        return {number: self.known[number] for number in numbers if number in self.known}


class Said:
    """What the proposer asks of a display."""

    def __init__(self):
        self.lines: list[str] = []
        self.say = self.show_researcher = self.lines.append


class Researcher:
    """Answers what the script says, in order: a Draft, or an exception that it raises. None: it never answers."""

    name = "stand-in"

    def __init__(self, script: list):
        self.script, self.prompts, self.limits_usd = list(script), [], []

    def propose(self, prompt: object, tried: frozenset, stopped: threading.Event, purse: Purse) -> Draft:
        self.prompts.append(prompt)
        self.limits_usd.append(purse.left_usd)
        step = self.script.pop(0) if self.script else None
        if step is None:
            stopped.wait(20)
            raise Unavailable("stopped", Outage.STOPPED)
        if isinstance(step, Exception):
            raise step
        return step

    def write(self, prompt: object, skipped: threading.Event, limit_s: float, purse: Purse) -> tuple[str, float]:
        self.limits_usd.append(purse.left_usd)
        if not self.script:
            skipped.wait(limit_s)
            raise Unavailable("stopped", Outage.STOPPED)
        self.asked = prompt
        return self.script.pop(0)

    def repair(self, prompt: object, code: str, log: str, *rest: object) -> Draft:
        self.repaired = prompt.code, code, log
        return self.propose(prompt, *rest)


def draft(name: str, change: tuple[str, str], usd: float = 0.1, notes: str = "") -> Draft:
    answer = Answer(name, "because", kind="mechanism", area="attention", notes=notes)
    return Draft(Proposal(name, TRAIN.replace(*change), "stand-in", "because", usd), answer, TRAIN)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes a proposer for a script, and the session that it proposes for."""
    (tmp_path / "program.md").write_text(PROGRAM)
    monkeypatch.setattr(proposer, "PATIENCE_S", 0.1)
    monkeypatch.setattr(proposer, "next_wait_s", lambda *words: 60.0)
    made = []
    (tmp_path / "runs").mkdir()

    def proposer_of(*script: object, kind: str = "auto", max_usd: float | None = None):
        rows = (Row("c0", 2.0, status=Status.KEEP, source="baseline"),)
        now = Session("t", tmp_path / "runs", 1.0, {}, rows, tuple(ledger.experiments(rows)), TRAIN, PROGRAM)
        options = argparse.Namespace(researcher=kind, tuner_share=0.3, max_usd=max_usd)
        researcher = Researcher(script) if kind != "tuner" else None
        found = proposer.Proposer(options, Shelf(tmp_path), now, researcher, Said(), threading.Event())
        made.append(found)
        return found, now

    proposer_of.runs = tmp_path / "runs"
    yield proposer_of
    for found in made:
        found.stopped.set()
        found.close()


def test_the_models_idea_carries_what_was_said_of_it(make):
    found, now = make(draft("faster", BETTER, notes="look at the rate"))
    idea = found.propose(now, (), False)
    assert (idea.proposal.description, idea.kind, idea.area) == ("faster", "mechanism", "attention")
    found.judged(Candidate(1, "c1", 100, idea))
    (now.runs / "0000-0.json").write_text('{"profile": "start 3.5 s\\nforward 40%"}')
    (now.runs / "0000-0.log").write_text("loss 1.0")
    asked = Memory(now.runs).situation(now, (), PROGRAM)
    assert asked.ideas == {1: {"experiment": 1, "kind": "mechanism", "area": "attention", "is_mend": False,
                               "reasoning": "because"}}
    assert asked.notes == "look at the rate" and asked.logs == {0: "loss 1.0"}
    assert asked.profiles == {0: "start 3.5 s\nforward 40%"}


def test_the_tuner_has_its_turn_whatever_the_model_says(make):
    found, now = make(draft("faster", BETTER))
    assert found.propose(now, (), True).proposal.source == "tuner" and found.researcher.prompts == []


def test_a_model_that_is_late_leaves_the_turn_to_the_tuner(make):
    found, now = make(draft("faster", BETTER))
    ideas = [found.propose(now, (), False).proposal for _ in range(2)]
    assert [idea.source for idea in ideas] == ["stand-in", "tuner"]


# Beside trials in flight ------------------------------------------------------------------------


def running(code: str, number: int = 1, source: str = "stand-in", **more: object) -> Candidate:
    return Candidate(number, f"c{number}", 100, New(Proposal(f"idea {number}", code, source)), **more)


def test_a_draft_a_slot_is_made_ahead_and_each_is_told_of_the_others(make):
    found, now = make(None, None, draft("faster", BETTER))
    for _ in range(2):  # the second time there is nothing left to ask for
        found.draft_ahead(now, (running(TRAIN + "x = 1\n"),), 2)
    while len(found.researcher.prompts) < 2:
        time.sleep(0.01)
    first, second = sorted((prompt.ask for prompt in found.researcher.prompts), key=len)
    assert "idea 1" in first and "x = 1" in first and "being written" not in first
    assert "1 other answers to this same prompt are being written" in second
    found.stopped.set()


def test_a_free_slot_beside_busy_ones_takes_the_answer_that_is_there_and_never_blocks(make, monkeypatch):
    monkeypatch.setattr(proposer, "PATIENCE_S", 60.0)
    found, now = make(None, draft("faster", BETTER))
    in_flight = (running(TRAIN + "x = 1\n"),)
    found.draft_ahead(now, in_flight, 2)
    assert found.propose(now, in_flight, False).proposal.description == "faster"
    assert found.propose(now, in_flight, False) is None  # the other answer is still under way
    monkeypatch.setattr(proposer, "PATIENCE_S", 0.0)
    assert found.propose(now, in_flight, False).proposal.source == "tuner"
    found.stopped.set()


def test_alone_the_model_is_waited_for_beside_trials_too(make):
    found, now = make(None, kind="llm")
    assert found.propose(now, (running(TRAIN + "x = 1\n"),), False) is None
    found.stopped.set()


def test_what_the_tuner_has_in_flight_it_does_not_propose_again(make):
    found, now = make(kind="tuner")
    in_flight, codes = (), set()
    for number in range(1, 9):
        idea = found.propose(now, in_flight, True)
        codes.add(idea.proposal.code)
        in_flight += (running(idea.proposal.code, number, "tuner"),)
    assert len(codes) == 8


def beside(now: Session, shelf: Shelf, code: str, status: Status, value: float | None) -> Session:
    """#1 was kept while #2, this train.py, ran; both change the baseline's."""
    rows = (*now.rows, Row("c1", 1.7, status=Status.KEEP, experiment=1, description="faster", parent="c0"),
            Row("c2", value, status=status, experiment=2, description="idea 2", parent="c0"))
    shelf.known = {0: TRAIN, 1: TRAIN.replace(*BETTER), 2: code}
    head = code if status is Status.KEEP else shelf.known[1]
    return replace(now, rows=rows, history=tuple(ledger.experiments(rows)), code=head)


def test_a_change_that_a_late_keep_lacks_is_offered_once(make):
    found, now = make(kind="tuner")
    longer = TRAIN.replace("BATCH = 8 ", "BATCH = 4 ")
    after = beside(now, found.store, longer, Status.KEEP, 1.6)
    idea = found.propose(after, (), True).proposal
    assert idea.code == longer.replace(*BETTER) and idea.source == "combine" and "faster" in idea.description
    assert found.propose(after, (), True).proposal.source == "tuner"
    rows = (*after.rows, Row("c3", 1.5, status=Status.KEEP, experiment=3, parent="c2"))  # nothing was kept meanwhile
    third = replace(after, rows=rows, history=tuple(ledger.experiments(rows)))
    assert found.propose(third, (), True).proposal.source == "tuner"


def test_a_late_idea_that_beat_its_own_parent_alone_is_tried_with_the_incumbent(make):
    longer = TRAIN.replace("BATCH = 8 ", "BATCH = 4 ")
    for value, sources in ((1.9, ["combine", "tuner"]), (2.1, ["tuner"]), (None, ["tuner"])):  # its parent reads 2.0
        found, now = make(kind="tuner")
        late = beside(now, found.store, longer, Status.DISCARD if value else Status.CRASH, value)
        ideas = [found.propose(late, (), True).proposal for _ in sources]
        assert [idea.source for idea in ideas] == sources
        assert value != 1.9 or ideas[0].code == longer.replace(*BETTER) and "idea 2" in ideas[0].description


def test_a_combination_is_offered_after_a_restart_unless_its_row_is_there(make):
    longer = TRAIN.replace("BATCH = 8 ", "BATCH = 4 ")
    for n_rows, source in ((3, "combine"), (4, "tuner")):
        found, now = make(kind="tuner")
        late = beside(now, found.store, longer, Status.KEEP, 1.6)
        done = Row("c3", 1.9, status=Status.DISCARD, experiment=3, description="the incumbent with #1: faster",
                   parent="c2")
        rows = (*late.rows, done)[:n_rows]
        late = replace(late, rows=rows, history=tuple(ledger.experiments(rows)))
        again = proposer.Proposer(found.options, found.store, late, None, found.display, found.stopped)
        assert again.propose(late, (), True).proposal.source == source
        again.close()


def test_a_lacking_change_that_does_not_merge_is_told_to_the_model(make):
    found, now = make(kind="tuner")
    after = beside(now, found.store, TRAIN.replace(*OTHER), Status.KEEP, 1.6)
    assert found.propose(after, (), True).proposal.source == "tuner"
    told = Memory(now.runs).situation(after, (), PROGRAM).unapplied
    assert [("faster" in idea["description"], "side by side" in idea["reason"]) for idea in told] == [(True, True)]


# Outages ----------------------------------------------------------------------------------------


def test_a_model_that_is_out_is_left_alone_for_a_while_and_what_it_billed_is_paid_by_its_next_row(make):
    error = ProposalError("no such line", Flaw.CONTENT)
    error.usd = 0.5
    outage = Unavailable("overloaded", Outage.PASSING)
    outage.usd = 0.25
    found, now = make(error, outage, draft("faster", BETTER, 0.125))
    assert found.propose(now, (), False).proposal.source == "tuner"
    assert found.propose(now, (), False).proposal.usd == 0 and len(found.researcher.prompts) == 2
    assert Memory(now.runs).situation(now, (), PROGRAM).unapplied[0]["reason"] == "no such line"
    found.back_at = 0.0
    assert found.propose(now, (), False).proposal.usd == 0.875


def test_a_key_that_is_rejected_leaves_the_session_to_the_tuner_or_ends_it(make):
    found, now = make(Unavailable("rejected", Outage.SETUP))
    assert found.propose(now, (), False).proposal.source == "tuner" and found.tuner_share == 1.0
    found, now = make(Unavailable("rejected", Outage.SETUP), kind="llm")
    with pytest.raises(SetupError, match="rejected"):
        found.propose(now, (), False)


def test_llm_waits_for_the_model_until_the_user_stops_it(make):
    found, now = make(kind="llm")
    threading.Timer(0.5, found.stopped.set).start()
    with pytest.raises(Stopped):
        found.propose(now, (), False)


def test_alone_the_model_is_asked_round_by_round_so_that_a_limit_is_seen_between_two(make):
    found, now = make(Unavailable("out", Outage.PASSING), draft("faster", BETTER), kind="llm")
    assert found.propose(now, (), False) is None
    found.back_at = 0.0
    assert found.propose(now, (), False).proposal.description == "faster"


def test_the_models_purse_holds_what_is_left_and_its_word_that_it_is_empty_ends_the_session(make):
    (make.runs / "calls.jsonl").write_text('{"usd": 0.25}\n{"usd": 0.5}\n{"usd": 9, "torn')
    found, now = make(draft("faster", BETTER, 0.125), Unavailable("--max-usd", Outage.BUDGET), max_usd=1.0)
    assert found.propose(now, (), False).proposal.usd == 0.875, "with what was billed before and is in no row"
    with pytest.raises(Stopped, match="--max-usd"):
        found.propose(now, (), False)
    assert found.researcher.limits_usd == [0.25, 0.25] and found.spent_usd() == 0.875


def test_an_answer_that_nobody_has_used_yet_is_spent_all_the_same(make):
    found, now = make(draft("faster", BETTER, 0.125))
    found.draft_ahead(now, ())
    found.close()
    assert found.spent_usd() == 0.125


def after(now: Session, n: int, data: str = "") -> Session:
    """The session once it has n experiments."""
    rows = [Row(f"c{i}", 2.0 + i, status=Status.DISCARD if i else Status.KEEP, experiment=i, data=data)
            for i in range(n)]
    return replace(now, rows=tuple(rows), history=tuple(ledger.experiments(rows)))


def test_lessons_are_kept_bounded_shown_billed_and_the_first_notes_of_the_next_session_on_the_same_data(make):
    found, now = make(("\x1b[2Jwider is better\n\n" + "a long line " * 99 + "\nmore" * 99, 0.25), max_usd=1.0)
    head, first, *rest = found.lessons(after(now, 9), threading.Event())
    assert head == "what was learnt, in the words of stand-in ($0.25):" and first == "[2Jwider is better"
    assert len(rest) == 11 and max(map(len, rest)) == 240 and found.spent_usd() == 0.25
    assert found.researcher.limits_usd == [1.0] and "propose no experiment" in found.researcher.asked.ask
    assert report.summary(now.rows, now.runs).endswith("\n".join([head, first, *rest]))
    runs = now.runs.parent / "later"
    earlier = {"none": after(now, 3, "ab").rows, now.runs.name: after(now, 3, "ab").rows, "other": after(now, 3).rows}
    told = Memory(runs, earlier).situation(replace(after(now, 2, "ab"), runs=runs), (), PROGRAM)
    assert told.notes.splitlines() == [head, first, *rest]
    assert Memory(runs, earlier).situation(replace(after(now, 2, "cd"), runs=runs), (), PROGRAM).notes == ""
    Memory(runs).write_notes("my own")
    assert Memory(runs, earlier).situation(replace(after(now, 2, "ab"), runs=runs), (), PROGRAM).notes == "my own"


def test_lessons_wait_for_nobody_and_are_asked_of_nobody_who_is_out_or_has_seen_too_little(make, monkeypatch):
    monkeypatch.setattr(proposer, "LESSONS_S", 0.1)
    found, now = make()
    assert found.lessons(after(now, 9), threading.Event()) == ["no lessons: stopped"]
    asked = len(found.researcher.limits_usd)
    skipped = threading.Event()
    skipped.set()
    assert found.lessons(after(now, 9), skipped) == [] == found.lessons(after(now, 5), threading.Event())
    found.back_at = float("inf")
    assert found.lessons(after(now, 9), threading.Event()) == [] and len(found.researcher.limits_usd) == asked
    assert make(kind="tuner")[0].lessons(after(now, 9), threading.Event()) == []


def test_what_the_model_does_is_shown_as_long_as_it_does_it(make):
    found, now = make(draft("faster", BETTER))
    found.draft_ahead(now, ())
    found.close()
    assert found.display.lines == ["stand-in drafts the next proposal", ""]


CRASH = Trial(None, "RuntimeError: boom", 1, "val", 1.0, "cpu", "abc", "none", ending=Ending.CRASHED, log="boom")


def crashed(number: int = 1) -> Candidate:
    step = New(Proposal("broken", TRAIN + "x = 1\n", "stand-in"), kind="mechanism")
    return Candidate(number, f"c{number}", 100 * number, step, parent_code=TRAIN)


def test_a_crash_is_mended_on_the_file_that_it_changed(make):
    found, now = make(draft("mended", BETTER))
    moved = replace(now, code=TRAIN.replace(*WORSE))
    found.mend_ahead(moved, crashed(), CRASH)
    idea = found.propose(now, (), False)
    assert found.researcher.repaired == (TRAIN, TRAIN + "x = 1\n", "broken\nRuntimeError: boom\nboom")
    assert idea.is_mend and idea.proposal.note == "mended after: RuntimeError: boom"


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_crash_is_mended_later_where_the_model_is_out(make, is_asked):
    """It is out already, or it goes while the mend is asked for."""
    mended = draft("mended", BETTER)
    found, now = make(*[Unavailable("out", Outage.PASSING)] * is_asked, mended)
    found.back_at = 0.0 if is_asked else float("inf")
    found.mend_ahead(now, crashed(), CRASH)
    assert found.propose(now, (), False).proposal.source == "tuner"
    found.back_at = 0.0
    found.draft_ahead(now, (), 0)
    assert not found.asked, "no idea is wanted"
    assert found.propose(now, (), False).is_mend


def test_a_mend_whose_call_fails_twice_gives_way_to_a_new_idea(make):
    out = Unavailable("out", Outage.PASSING)
    found, now = make(out, out, draft("faster", BETTER))
    found.mend_ahead(now, crashed(), CRASH)
    for source in ("tuner", "tuner", "stand-in"):
        idea = found.propose(now, (), False)
        found.back_at = 0.0
        assert (idea.proposal.source, idea.is_mend) == (source, False)


def test_a_mend_that_had_no_machine_is_not_mended_again(make):
    found, now = make(draft("mended", BETTER))
    mend = crashed(2)
    found.judged(replace(mend, step=replace(mend.step, is_mend=True)))  # its busy row
    found.mend_ahead(now, mend, CRASH)
    assert not found.asked


def test_a_mend_leaves_the_notebook_which_it_was_not_shown(make):
    found, now = make(draft("mended", BETTER, notes="of the mend"))
    found.mend_ahead(now, crashed(), CRASH)
    assert found.propose(now, (), False).is_mend and not (now.runs / "notes.md").exists()


def test_a_crash_of_another_direction_is_not_mended(make):
    found, now = make(draft("mended", BETTER))
    old = crashed()
    found.mend_ahead(now, replace(old, step=replace(old.step, program=PROGRAM.replace("Anything", "Nothing"))), CRASH)
    assert not found.asked


def test_the_first_idea_that_read_another_program_says_so_and_no_other(make):
    found, now = make(*[draft(name, change) for name, change in (("a", BETTER), ("b", WORSE), ("c", OTHER))])
    steered = [found.propose(now, (), False).is_steered]
    (found.store.root / "program.md").write_text(PROGRAM + "More.\n")
    steered += [found.propose(now, (), False).is_steered for _ in range(2)]
    assert steered == [False, True, False]


def test_the_model_takes_the_tuners_turn_where_no_constant_is_left(make):
    bare = TRAIN.replace("LEARNING_RATE", "rate").replace("BATCH", "rows")
    idea = Draft(Proposal("faster", bare + "x = 1\n", "stand-in"), Answer("faster", ""), bare)
    found, now = make(idea)
    now = replace(now, code=bare)
    assert found.propose(now, (), True).proposal.source == "stand-in"
    assert found.propose(now, (running(TRAIN),), True) is None  # it is waited for beside the trial
    found.stopped.set()


def test_an_answer_under_way_is_used_when_the_key_is_out(make):
    found, now = make(Unavailable("no credit", Outage.SETUP), draft("faster", BETTER))
    found.draft_ahead(now, (), 2)
    while not all(asked.answer.done() for asked in found.asked):
        time.sleep(0.01)
    assert found.propose(now, (), False).proposal.description == "faster" and found.researcher is None
    assert found.tuner_share == 1.0 and found.propose(now, (), True).proposal.source == "tuner"


def test_the_baseline_itself_is_no_idea(make):
    same = Draft(Proposal("same", TRAIN + "# nothing\n", "stand-in"), Answer("same", ""), TRAIN)
    found, now = make(same)
    found.judged(Candidate(0, "c0", 0, New(Proposal("baseline", TRAIN, "baseline"))))
    assert found.propose(now, (), False).proposal.source == "tuner"


def test_directions_that_changed_throw_the_draft_away(make):
    found, now = make(draft("faster", BETTER))
    found.draft_ahead(now, ())
    assert isinstance(found.asked[0].answer, Future)
    (found.store.root / "program.md").write_text(PROGRAM.replace("Anything", "The optimizer"))
    assert found.propose(now, (), False).proposal.source == "tuner"
    assert "directions in program.md changed" in " ".join(found.display.lines)


def test_ideas_that_conflict_leave_the_model_in_its_turn(make):
    found, now = make(*[draft("faster", BETTER)] * 2, draft("slower", WORSE))
    moved = replace(now, code=TRAIN.replace(*OTHER))
    assert found.propose(moved, (), False).proposal.description == "slower"
    assert [idea["description"] for idea in found.memory.ideas] == ["faster", "faster"] and not found.failures


def test_the_tuner_learns_from_its_last_experiments_those_on_a_busy_machine_aside(make):
    found, now = make(kind="tuner")
    rows = [Row(f"c{n}", 2.0, status=Status.BUSY if n % 10 == 9 else Status.DISCARD, experiment=n)
            for n in range(1, 2 * proposer.TUNER_MEMORY)]
    found.propose(replace(now, history=(*now.history, *ledger.experiments(rows))), (), True)
    asked = found.store.asked
    assert len(asked) == proposer.TUNER_MEMORY and asked[-1] == 298 and not any(n % 10 == 9 for n in asked)


def test_program_md_that_cannot_be_read_for_a_while_steers_by_its_last_text_and_is_named_once(make):
    found, now = make(draft("faster", BETTER), draft("slower", WORSE))
    (found.store.root / "program.md").write_bytes(b"")
    for description in ("faster", "slower"):
        idea = found.propose(now, (), False)
        assert (idea.proposal.description, idea.program) == (description, PROGRAM)
    assert len([line for line in found.display.lines if "program.md is empty" in line]) == 1
