"""What each kept change is worth: clean removals, honest ranking, a run that can be stopped and goes on."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fakes import BETTER, edit, environment, git, make_checkout
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import check
from model_server import ModelServer

from agent import Turn, next_step
from lab import confirm, ledger, opening, report
from lab.archive import Archive
from lab.ledger import Proposal, Row, Status, experiments
from lab.session import Again, Candidate, New, Session, Stopped
from lab.turns import confirm_length, trial_s

PARENT = "a = 1\n\nb = 2\n\nc = 3\n"
KEPT = "a = 1\n\nb = 20\n\nc = 3\n"

# agent.py with trials that cost nothing: the loss is a function of the file, the split and the seed.
DRIVER = """\
import os, re, sys
import numpy as np
from lab import baseline, runner
from lab.ledger import Trial

def run(code, *, data, seed, budget_s, folder, split, **more):
    rate = float(re.search(r"LEARNING_RATE = ([0-9.]+)", code)[1])
    lucky = 0.01 * ("SEED + 1" in code and split == "val")
    value = 3 - rate / 100 - lucky + 0.001 * (seed % 3) * (split == "test")
    (folder / "trial" / "cache").mkdir(parents=True, exist_ok=True)
    if more["is_baseline"]:
        baseline.write(folder, baseline.Baseline(1.0, 1, np.zeros(1)))
    return Trial(value, "", seed, split, budget_s, f"cpu x{os.cpu_count()}", data.hash[:8], "full", witnessed=True)

runner.run = run
import agent  # its fleet takes runner.run as it finds it

agent.report.Drawer.draw = lambda drawer: None
sys.exit(agent.main(sys.argv[1:]))
"""


def test_a_removal_is_clean_or_none():
    assert confirm.without(PARENT, KEPT, KEPT) == PARENT
    assert confirm.without(PARENT, KEPT, "zero\n" + KEPT + "d = 4\n") == "zero\n" + PARENT + "d = 4\n"
    assert confirm.without(PARENT, KEPT, KEPT.replace("20", "21")) is None          # later changes build on it
    assert confirm.without(PARENT, KEPT, PARENT) is None                            # it is gone already


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["x = 1", "", "# ä", "<<<<<<< SEARCH"]), min_size=1, max_size=8), st.integers(0, 7))
def test_taking_the_last_change_back_gives_its_parent(lines, place):
    parent = "\n".join(lines) + "\n"
    kept = "\n".join([*lines[:place], "new = 3", *lines[place:]]) + "\n"
    assert confirm.without(parent, kept, kept) == parent


def row(number: int, value: float | None, split: str = "test", status: str = "repeat", **more) -> Row:
    description = more.pop("description", f"idea {number}")
    return Row(f"{number:07x}", value, 1.0, Status(status), description, number, split=split,
               **{"budget": 300.0, **more})


SESSION = [row(0, 2.0, "val", "keep"), row(1, 1.9, "val", "keep", parent="0000000"),
           row(2, 1.8, "val", "keep", parent="0000001"), *(row(2, value) for value in (1.81, 1.83, 1.82))]


def removal(number: int, kept: int, values: list[float | None], parent: str = "0000002") -> list[Row]:
    more = {"source": confirm.LEFT_OUT, "parent": parent, "description": f"without #{kept}: idea {kept}"}
    own = row(number, values[0], status="crash" if values[0] is None else "discard", **more)
    return [own, *(row(number, value, **more) for value in values[1:])]


def test_ranking_has_the_hand_computed_figures():
    rows = ([*SESSION, *removal(3, 2, [1.80, 1.82, 1.81]), *removal(4, 1, [1.90, 1.92, 1.91]),
                           *removal(5, 1, [9.0], parent="0000001")])  # the last was taken out of an older incumbent
    most, least = confirm.ranking(experiments(rows))
    error = 0.01 * math.sqrt(2 / 3)
    assert most == (1, "idea 1", pytest.approx(0.09), pytest.approx(error))
    assert least == (2, "idea 2", pytest.approx(-0.01), pytest.approx(error))
    text = report.summary(rows)
    assert re.search(r"\n +1 \+0\.090000 ± 0\.008165 +idea 1\n +2 -0\.010000 ± 0\.008165 +idea 2\n", text)
    assert text.endswith("Within noise, candidates for removal: #2.")
    assert "experiments: keep 3, repeat 3, leave-one-out 7" in text and "leave-one-out tries" not in text
    assert all(line in report.page(rows, Archive()) for line in report.left_out(rows))


def test_a_removal_that_had_no_machine_has_no_worth_yet():
    more = {"source": confirm.LEFT_OUT, "parent": "0000002", "description": "without #1: idea 1", "status": "busy"}
    assert confirm.ranking(experiments([*SESSION, row(3, 1.9, **more)])) == []


def test_one_seed_has_no_noise_and_a_crash_no_worth():
    rows = ([*SESSION[:4], *removal(3, 1, [1.9]), *removal(4, 2, [None])])
    crashed, known = confirm.ranking(experiments(rows))
    assert crashed[0] == 2 and crashed[2] == math.inf and math.isnan(known[3])
    assert "crashes without it" in report.summary(rows) and "One seed each" in report.summary(rows)
    assert confirm.ranking(experiments(SESSION[:3])) == [] == confirm.ranking([])


def test_a_change_is_taken_out_against_the_file_that_it_changed():
    """#2 is dropped when #1 returns; #3 changes #1's file."""
    rows = [*SESSION[:3], row(1, 1.7, "val", "keep", parent="0000000"), row(3, 1.6, "val", "keep", parent="0000001")]
    now = Session("t", Path("runs"), 300.0, {}, tuple(rows), tuple(experiments(rows)), "a = 1\nb = 2\nd = 4\n")
    codes = {0: "a = 1\n", 1: "a = 1\nb = 2\n", 2: "a = 1\nb = 2\nc = 3\n", 3: now.code}
    assert [(before.number, e.number) for before, e in confirm.changes_in(now.history)] == [(0, 1), (1, 3)]
    found, lines = confirm.taken_out(now, codes.get)
    assert lines[0] == "no longer in train.py: #2: idea 2" and 2 not in found


def test_removals_leave_the_search_as_it_was():
    plain = experiments(SESSION)
    more = experiments([*SESSION, *(r for i in range(9) for r in removal(3 + i, 1, [1.9]))])
    assert confirm.ideas(more) == plain and ledger.incumbent(more) == ledger.incumbent(plain)
    with_removals = Session("t", Path("runs"), 300.0, {}, (), tuple(more))
    without_them = replace(with_removals, history=tuple(plain))
    assert next_step(with_removals, (), 0.3) is Turn.MODEL is next_step(without_them, (), 0.3)
    assert ledger.sigma(more) == ledger.sigma(plain)


def test_two_slots_leave_no_removal_behind():
    """While the last one runs nothing is left to start, yet its further seeds are still to come."""
    session = Session("t", Path("runs"), 300.0, {}, tuple(SESSION), tuple(experiments(SESSION)))
    idea = Proposal("without #1: idea 1", "a = 1", confirm.LEFT_OUT)
    step = confirm.next_measurement(session, (), {2: 3}, {1: idea})
    assert step == New(idea, "test")
    running = Candidate(3, "0000003", 300, step)
    assert confirm.next_measurement(session, [running], {2: 3}, {1: idea}) is None
    assert confirm.next_measurement(session, [running], {2: 5}, {1: idea}) == Again(2, "test")
    rows = [*SESSION, *removal(3, 1, [1.9])]
    session = replace(session, rows=tuple(rows), history=tuple(experiments(rows)))
    assert confirm.next_measurement(session, (), {2: 3}, {1: idea}) == Again(3, "test")
    with pytest.raises(Stopped):
        confirm.next_measurement(session, (), {2: 3}, {})


def test_what_was_busy_on_the_validation_split_waits_for_the_next_research():
    """It could become the incumbent while the one of now is confirmed."""
    rows = [*SESSION[:3], row(3, None, "val", "busy"), row(2, None, status="busy")]
    session = Session("t", Path("runs"), 300.0, {}, tuple(rows), tuple(experiments(rows)))
    assert confirm.next_measurement(session, (), {2: 3}, {}) == Again(2, "test")
    assert next_step(session, (), 0.3) == Again(2, "test")


LONGER = [row(0, 2.2, budget=900.0), row(2, 2.1, budget=900.0)]


def under(budget_s: float, rows: list[Row]) -> Session:
    return Session("t", Path("runs"), budget_s, {}, tuple(rows), tuple(experiments(rows)))


def test_longer_measures_each_side_as_often_and_goes_on_where_it_stopped():
    def steps(rows: list[Row]) -> list[Again]:
        """What is measured from these rows on, one at a time."""
        choose, done = confirm.plan(under(900.0, rows), False, True, str)[0], []
        with pytest.raises(Stopped):
            while True:
                done.append(choose(under(900.0, [*rows, *(row(s.number, 2.0, budget=900.0) for s in done)]), ()))
        return done

    assert steps(SESSION) == [Again(0, "test"), Again(2, "test")] == steps([*SESSION, *LONGER])
    assert steps([*SESSION, LONGER[0]]) == [Again(2, "test")]
    assert steps([*SESSION, row(0, 2.3, status="busy", budget=900.0)]) == steps(SESSION)


def test_confirm_says_how_many_trials_are_before_it_and_how_long_they_take():
    def length(rows: list[Row], budget_s: float, each: bool = False, is_longer: bool = False) -> str:
        now = under(budget_s, rows)
        return confirm_length(now, confirm.plan(now, each, is_longer, {0: "a = 1", 1: KEPT, 2: KEPT}.get)[0])

    timed = [replace(row, total_seconds=330.0) for row in SESSION]
    assert length(timed, 300.0) == "measures 6 trials, about 33 minutes"
    assert length(timed, 300.0, each=True) == "measures 3 trials, about 16 minutes"
    assert length(timed, 900.0, is_longer=True) == "measures 2 trials, about 33 minutes"
    assert length([*timed, LONGER[0]], 900.0, is_longer=True).startswith("measures 1 trial, about")
    now, idea = under(300.0, timed), Proposal("without #1: idea 1", "a = 1", confirm.LEFT_OUT)
    choose = partial(confirm.next_measurement, goal={2: 3}, removals={1: idea})
    assert confirm_length(now, choose).startswith("measures 3 trials")
    assert confirm_length(replace(now, lacks_baseline=True), choose).startswith("measures 4 trials")
    assert confirm_length(now, partial(choose, removals={})).startswith("measures 0 trials")


def test_rows_of_a_longer_budget_count_in_no_estimate():
    plain, more = under(300.0, SESSION), under(300.0, [*SESSION, *LONGER, row(0, 2.4, status="busy", budget=900.0)])
    assert [e.val_bpb for e in more.history] == [e.val_bpb for e in plain.history]
    assert ledger.sigma(more.history) == ledger.sigma(plain.history)
    assert confirm.test_trials(more) == confirm.test_trials(plain) and more.busy(()) is None
    assert report.confirmed(more.rows) == report.confirmed(plain.rows)
    assert report.keeps(more.rows) == report.keeps(plain.rows) and trial_s(more) == trial_s(plain)


def test_longer_says_whether_order_and_size_of_the_gain_stay():
    known = [*SESSION, *(row(0, value) for value in (2.00, 2.02, 2.04))]  # a gain of 0.2 on the test split, sigma 0.015
    first, second = report.longer([*known, *LONGER, row(0, 2.3, budget=600.0), row(2, 2.4, budget=600.0)])
    assert first.startswith("At 2 times the budget (1 seed each, test split) the gain is -0.100000 ± 0.022361, -50% ")
    assert first.endswith("of the 0.200000 at 300 s: the order turns.") and second.endswith(": the order stays.")
    assert second.startswith("At 3 times") and "0.100000 ± 0.022361, 50% of the 0.200000" in second
    close = [row(0, 2.2, budget=900.0), row(2, 2.19, budget=900.0)]
    assert report.longer([*known, *close])[0].endswith("within the noise of so few seeds.")
    without = "At 900 s one of the two has no number."
    assert report.longer([*known, LONGER[1]]) == [without]
    twice = [row(n, value, budget=s) for s in (600.0, 1200.0) for n, value in ((0, 2.3), (2, 2.2))]
    lines = report.longer([*known, LONGER[1], *twice])
    assert [line[:10] for line in lines] == ["At 2 times", "At 900 s o", "At 4 times"] and lines[1] == without
    assert report.longer(known) == [] == report.longer(known[:1])
    assert second in report.summary([*known, *LONGER]) and second in report.page([*known, *LONGER], Archive())


def test_longer_is_refused_past_two_passes_over_the_data_and_without_a_keep(corpus):
    million = corpus.train_tokens / 1e6
    rows = [row(0, 2.0, "val", "keep", tokens_m=0.5 * million), row(1, 1.9, "val", "keep", tokens_m=0.7 * million)]
    opening.check_longer(2.8, rows, corpus)
    with pytest.raises(ledger.SetupError, match="2.1 times over the same data.*at most --longer 2.7"):
        opening.check_longer(3, rows, corpus)
    often = [replace(row, tokens_m=2.5 * million) for row in rows]
    with pytest.raises(ledger.SetupError, match="by heart: start a session with more text"):
        opening.check_longer(1.2, often, corpus)
    with pytest.raises(ledger.SetupError, match="the baseline stands, so there is no gain"):
        opening.check_longer(2, rows[:1], corpus)


@pytest.fixture
def night(tmp_path, corpus, corpus_path):
    """A checkout, and a function that runs its agent with trials that cost nothing."""
    checkout = make_checkout(tmp_path / "checkout")
    (tmp_path / "driver.py").write_text(DRIVER)

    def agent(*arguments: str, **changes: str) -> str:
        command = [sys.executable, str(tmp_path / "driver.py"), *arguments, "--data", str(corpus_path)]
        done = subprocess.run(command, cwd=checkout, env=environment(PYTHONPATH=str(checkout), **changes), text=True,
                              capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return checkout, agent


def test_confirm_each_measures_every_removal_and_goes_on_where_it_stopped(night):
    checkout, agent = night
    script = [edit("faster", BETTER),
              edit("lucky", ("    torch.manual_seed(SEED)", "    torch.manual_seed(SEED + 1)")),
              edit("faster still", (BETTER[1], BETTER[1].replace("100", "120")))]
    with ModelServer(script) as server:
        agent("--experiments", "3", "--budget", "1", "--tuner-share", "0", ANTHROPIC_BASE_URL=server.url)
        asked = len(server.requests)
        said = agent("confirm", "--each", ANTHROPIC_BASE_URL=server.url)
        assert len(server.requests) == asked  # nothing is drafted that would never run
    assert "Confirmed gain 1.190000" in said and "later changes build on it: #1: faster\n" in said
    assert re.search(r"\n3 \+0\.200000 ± \S+ faster still\n2 \+0\.000000 ± \S+ lucky\n", said)
    assert "candidates for removal: #2." in said
    check(checkout)
    rows = ledger.read(checkout / "results.tsv")
    left = [row for row in rows if row.source == confirm.LEFT_OUT]
    assert [(row.experiment, row.status) for row in left[:2]] == [(4, "discard"), (5, "discard")]
    assert {row.split for row in left} == {"test"} and len(left) == 6
    assert "SEED + 1" not in git(checkout, "show", f"{left[0].commit}:train.py")
    assert "LEARNING_RATE = 120.0" in git(checkout, "show", f"{left[0].commit}:train.py")

    whole = (checkout / "results.tsv").read_text()
    cut = "".join(whole.splitlines(keepends=True)[:-3])
    (checkout / "results.tsv").write_text(cut)
    git(checkout, "commit", "-qam", "as if it had been stopped")
    agent("confirm", "--each")
    again = ledger.read(checkout / "results.tsv")
    assert [(r.experiment, r.seed, r.val_bpb) for r in again] == [(r.experiment, r.seed, r.val_bpb) for r in rows]
    check(checkout)
