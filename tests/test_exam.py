"""The exam: leaks are found with the power its docstring promises, and honest models are never accused."""

import random
import threading
from functools import cache

import numpy as np
import pytest
import torch
from models import BROKEN, KINDS, MIXES, STATEFUL, Honest, Leak, T, V, kinds_of, text, trained

from lab import exam, scoring
from lab.ledger import Ending

ROWS = text(256).numpy()
OTHERS = np.random.default_rng(1).permutation(text(256).numpy())  # training rows, as far as the exam knows
N_ROWS, N_PLACES = 1024, 256   # of the simulated exams: the CPU profile's
BYTES_A_TOKEN = 2.9            # of builtin's held-out text at a vocabulary of 2048


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: threads would only wait for each other
    yield
    torch.set_num_threads(before)


def losses(model, inputs: np.ndarray, order: np.ndarray, rows_an_ask: int) -> np.ndarray:
    """What a process says of all rows, (N, T) nats."""
    found = np.empty((len(ROWS), T), np.float32)
    with torch.no_grad():
        for ask in scoring.batches(order, rows_an_ask):
            logits = model(torch.from_numpy(inputs[ask])).float().flatten(0, 1)
            goal = torch.from_numpy(ROWS[ask, 1:]).flatten()
            found[ask] = torch.nn.functional.cross_entropy(logits, goal, reduction="none").view(-1, T).numpy()
    return found


def sit(model, seed: int = 0, rows_an_ask: int = 8, baseline: np.ndarray | None = None) -> tuple[Ending, str]:
    """The verdict on a model, with both processes played by this one."""
    rng = np.random.default_rng(seed)
    trial = losses(model, ROWS[:, :-1], np.arange(len(ROWS)), rows_an_ask)
    cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), rng)
    asked = exam.questions(ROWS, OTHERS, cuts, V, rng)
    witness = losses(model, asked, rng.permutation(len(ROWS)), rows_an_ask)
    return exam.verdict(trial, witness, cuts, "cpu")


# Real models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXES)
def test_a_leak_is_found_trained_or_not(name):
    torch.manual_seed(0)
    for model in (Leak(MIXES[name]).eval(), trained(Leak(MIXES[name])), trained(Leak(MIXES[name], 0.2))):
        assert sit(model)[0] is not Ending.SCORED


@pytest.mark.parametrize("name", STATEFUL)
def test_a_model_that_answers_otherwise_each_time_is_found(name):
    torch.manual_seed(0)
    assert sit(STATEFUL[name]())[0] is not Ending.SCORED


@pytest.mark.parametrize("name", BROKEN)
def test_the_broken_twin_of_an_honest_kind_is_found(name):
    assert sit(BROKEN[name]())[0] is not Ending.SCORED


def test_honest_models_are_of_every_kind_and_sixty_of_two_hundred_compute_in_bfloat16():
    assert sum(Honest(seed).in_bfloat16 for seed in range(200)) == 60
    for name in KINDS:
        assert sum(name in kinds_of(seed) for seed in range(200)) >= 15
        assert any(name in kinds_of(seed) and Honest(seed).in_bfloat16 for seed in range(200))


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 200), marks=pytest.mark.long)])
def test_no_honest_model_is_accused(seeds):
    for seed in seeds:
        verdict = sit(Honest(seed).eval(), seed, random.Random(seed).choice((1, 4, 8, 16)))
        assert verdict == (Ending.SCORED, ""), (seed, verdict)


@pytest.mark.long
def test_no_compiled_model_is_accused():
    for seed in range(200, 212):
        assert sit(torch.compile(Honest(seed).eval(), dynamic=False), seed)[0] is Ending.SCORED
        torch._dynamo.reset()


@pytest.mark.parametrize("n_exams", [40, pytest.param(200, marks=pytest.mark.long)])
def test_no_exam_of_many_accuses_one_honest_model(n_exams):
    model = Honest(3).eval()
    trial = losses(model, ROWS[:, :-1], np.arange(len(ROWS)), 64)
    baseline = trial + np.random.default_rng(0).normal(0, 0.35, trial.shape)
    for seed in range(n_exams):  # each asks it anew, in another order
        rng = np.random.default_rng(seed)
        cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), rng)
        asked = exam.questions(ROWS, OTHERS, cuts, V, rng)
        witness = losses(model, asked, rng.permutation(len(ROWS)), 64)
        assert exam.verdict(trial, witness, cuts, "cpu") == (Ending.SCORED, "")


# The questions --------------------------------------------------------------------------------------------------------


def test_each_row_is_its_own_up_to_its_cut_and_foreign_from_there():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        cuts = rng.integers(1, T + 1, len(ROWS))
        cuts[0] = T  # a whole row
        asked = exam.questions(ROWS, OTHERS, cuts, V, rng)
        before = np.arange(T) < cuts[:, None]
        assert (asked[before] == ROWS[:, :-1][before]).all()
        cut = np.flatnonzero(cuts < T)
        assert (asked[cut, cuts[cut]] != ROWS[cut, cuts[cut]]).all()


def test_half_of_the_cuts_go_where_the_trial_beats_the_baseline_and_half_anywhere():
    trial, baseline = np.full((1000, 100), 3.0), np.full((1000, 100), 3.0)
    trial[:, 40] = 0.5  # the token that is hidden from there on stands at 41
    cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), np.random.default_rng(0))
    assert 500 <= (cuts == 41).sum() <= 540
    assert np.bincount(cuts[cuts != 41], minlength=100)[1:].max() < 25
    counts = np.ones(trial.shape, bool)
    counts[:, 40] = False  # weighs nothing in the score: nothing to be gained there
    assert (exam.draw_cuts(trial, baseline, counts, np.random.default_rng(0)) == 41).sum() < 30
    uniform = exam.draw_cuts(trial, None, counts, np.random.default_rng(0))
    assert (uniform.min(), uniform.max()) == (1, 100)  # each place can be the last true one, the last of all too


# Power: the table of the docstring, by simulation on losses as the CPU profile has them -------------------------------


@cache
def honest_losses(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(trial, baseline) of two seeds of one model: like gammas whose mean is 3.3 nats, 0.35 apart."""
    rng = np.random.default_rng(seed)
    common = rng.gamma(0.9, 3.7, (N_ROWS, N_PLACES))
    return tuple(np.maximum(common + rng.normal(0, 0.35, common.shape), 0.001) for _ in "ab")


def everywhere(worth: float, honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.full(honest.shape, worth)


def in_rows(worth: float, honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    leak = np.zeros(honest.shape)
    chosen = rng.random(len(honest)) < 0.02
    leak[chosen] = np.minimum(worth / 0.02, honest[chosen])
    return leak


def anywhere(share: float, honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(honest.shape) < share, honest, 0.0)


def where_it_pays(share: float, honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    leak = np.zeros(honest.size)
    top = np.argpartition(honest.ravel(), -round(share * honest.size))[-round(share * honest.size):]
    leak[top] = honest.ravel()[top]
    return leak.reshape(honest.shape)


@pytest.mark.parametrize("share", [1e-4, 1e-3, 1e-2])
def test_a_leak_at_places_by_chance_is_found_as_the_table_says(share):
    """Without the baseline's losses, so that the draw by what pays does not help: 1 - (1 - f)^n at the least."""
    n_found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        honest = honest_losses(seed % 5)[0]
        trial = honest - anywhere(share, honest, rng)
        cuts = exam.draw_cuts(trial, None, np.ones(trial.shape, bool), rng)
        witness, last = trial.copy(), (np.arange(N_ROWS), cuts - 1)
        witness[last] = honest[last]
        n_found += exam.verdict(trial, witness, cuts, "cpu")[0] is Ending.FOUL
    expected = 1 - (1 - share) ** N_ROWS  # at least one of the places; one nearly always pays more than the bound
    assert abs(n_found / 100 - expected) < 0.15, (n_found, expected)


@pytest.mark.parametrize(("leak", "size", "found"), [
    (everywhere, 0.001 * np.log(2) * BYTES_A_TOKEN, 100), (in_rows, 0.001 * np.log(2) * BYTES_A_TOKEN, 95),
    (where_it_pays, 1 / 1000, 95), (where_it_pays, 1 / 2500, 95), (where_it_pays, 1 / 10_000, 95),
    (everywhere, 0.0, 0)])
def test_a_leak_worth_a_thousandth_of_a_bit_is_found(leak, size, found):
    """Of 100 exams: evenly spread, in 2 % of the rows, whole at rare places; and none of an honest model."""
    n_found = 0
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        honest, baseline = honest_losses(seed % 5)
        trial = honest - leak(size, honest, rng)
        cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), rng)
        witness, last = trial.copy(), (np.arange(N_ROWS), cuts - 1)
        witness[last] = honest[last]  # before a foreign token it says what it honestly knows
        n_found += exam.verdict(trial, witness, cuts, "cpu")[0] is Ending.FOUL
    assert n_found >= found if found else n_found == 0, n_found


def test_the_last_place_of_a_row_is_asked_too():
    """No token follows there, but what a model knows of other rows could help it."""
    n_found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        honest, baseline = honest_losses(seed % 5)
        trial = honest.copy()
        trial[:, -1] *= 0.5
        cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), rng)
        witness, last = trial.copy(), (np.arange(N_ROWS), cuts - 1)
        witness[last] = honest[last]
        n_found += exam.verdict(trial, witness, cuts, "cpu")[0] is Ending.FOUL
    assert n_found >= 95


def test_a_trial_that_repays_where_it_is_cheap_is_found():
    """Its own worse places count as little: gains of five nats are not hidden by losses of a tenth."""
    rng = np.random.default_rng(0)
    honest, baseline = honest_losses(0)
    trial = honest - where_it_pays(1 / 1000, honest, rng)
    trial[honest < 0.5] += 0.2
    cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), rng)
    witness = trial.copy()
    last = np.arange(N_ROWS), cuts - 1
    witness[last] = honest[last]
    assert exam.verdict(trial, witness, cuts, "cpu")[0] is Ending.FOUL


def test_a_small_leak_everywhere_is_not_hidden_by_being_worse_where_it_expects_to_be_asked():
    """Below `differs` each, the two would come out even: half of the places are asked where the trial is best."""
    rng = np.random.default_rng(0)
    honest, baseline = honest_losses(0)
    pays = np.maximum(baseline - honest, 0)
    is_expected = pays > np.quantile(pays, 0.8)
    trial = np.where(is_expected, honest + 0.009, honest - 0.009)
    cuts = exam.draw_cuts(trial, baseline, np.ones(trial.shape, bool), rng)
    witness, last = trial.copy(), (np.arange(N_ROWS), cuts - 1)
    witness[last] = honest[last]
    assert (honest - trial).mean() > 5e-3 and (witness - trial)[last].mean() < 0  # the signed mean sees no gain
    assert exam.verdict(trial, witness, cuts, "cpu")[0] is Ending.FOUL


# Scoring --------------------------------------------------------------------------------------------------------------


def test_every_row_is_asked_for_once_in_asks_of_one_shape():
    for n_rows, rows_an_ask in ((450, 7), (8, 3), (64, 64)):
        asks = scoring.batches(np.random.default_rng(0).permutation(n_rows), rows_an_ask)
        assert {len(ask) for ask in asks} == {rows_an_ask}
        assert sorted(set(np.concatenate(asks))) == list(range(n_rows)) and len(asks) == -(-n_rows // rows_an_ask)


def test_logits_that_change_while_they_are_scored_earn_nothing(corpus):
    """Raised after their sum was taken, they would say more than certainty: a loss below zero."""
    logits, ended = torch.zeros(16, 128, corpus.vocab_size), threading.Event()
    scorer = scoring.Scorer(corpus, "val", "cpu")

    def change():
        while not ended.is_set():
            logits.fill_(60.0)
            logits.zero_()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        lowest = min(scorer.losses(logits, np.zeros((16, 128), np.int64)).min() for _ in range(20))
    finally:
        ended.set()
        changing.join()
    assert lowest >= 0
