"""The examination that every score passes: leaks are found, honest models are never accused."""

import random
import threading

import pytest
import torch
from models import MIXES, STATEFUL, Honest, Leak, T, V, text, trained

from lab import referee

ROWS = text(480)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: threads would only wait for each other
    yield
    torch.set_num_threads(before)


def examine(model, seed: int = 0, rows_an_ask: int = 8) -> float:
    """Mean loss in nats over the rows, scored and examined as the referee does it. Raises Foul."""
    asks = referee.plan(ROWS.numpy().astype("uint16"), len(ROWS), rows_an_ask, V, random.Random(seed))
    nats, dtype = [], ""
    with torch.no_grad():
        for ask in asks:
            logits = model(torch.from_numpy(ask.inputs.astype("int64")))
            dtype = str(logits.dtype).removeprefix("torch.")
            nats.append(referee.token_losses(logits, ROWS[ask.rows, 1:], "cpu"))
    return referee.examine(asks, nats, referee.TOLERANCE[dtype]).mean().item()


@pytest.mark.parametrize("name", MIXES)
def test_a_leak_is_found_trained_or_not(name):
    torch.manual_seed(0)
    for model in (Leak(MIXES[name]).eval(), trained(Leak(MIXES[name])), trained(Leak(MIXES[name], 0.2))):
        with pytest.raises(referee.Foul, match="sees the future"):
            examine(model)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_model_that_answers_otherwise_each_time_is_found(name):
    torch.manual_seed(0)
    with pytest.raises(referee.Foul, match="keeps state|sees the future"):
        examine(STATEFUL[name]())


@pytest.mark.parametrize("rows_an_ask", [1, 8, 16])
def test_an_honest_model_is_scored_by_its_own_loss(rows_an_ask):
    model = trained(Leak(torch.zeros_like))
    with torch.no_grad():
        logits = model(ROWS[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ROWS[:, 1:].flatten()).item()
    assert examine(model, rows_an_ask=rows_an_ask) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 200), marks=pytest.mark.long)])
def test_no_honest_model_is_accused(seeds):
    for seed in seeds:
        examine(Honest(seed).eval(), seed, rows_an_ask=random.Random(seed).choice((1, 4, 8, 16)))


@pytest.mark.long
def test_no_compiled_model_is_accused():
    for seed in range(200, 212):
        examine(torch.compile(Honest(seed).eval(), dynamic=False), seed)
        torch._dynamo.reset()


def test_every_row_is_scored_once_and_what_is_probed_cannot_be_known():
    rows = ROWS.numpy().astype("uint16")
    places = set()
    for seed in range(30):
        asks = referee.plan(rows, 450, 7, V, random.Random(seed))
        scored = [row for ask in asks if ask.kind == "score" for row in ask.rows]
        assert sorted(set(scored)) == list(range(450)) and len({ask.inputs.shape for ask in asks}) == 1
        assert len(asks) <= 1.05 * len(scored) / 7
        for number, ask in enumerate(asks):
            for row, cut, shown in zip(ask.rows, ask.cuts, ask.inputs, strict=True):
                assert (shown[:cut] == rows[row, :cut]).all()
                assert cut in (0, T) or shown[cut] != rows[row, cut]
            if ask.kind == "probe":
                places.add(number)
                twin = [i for i, a in enumerate(asks) if a.kind == "score" and (a.rows == ask.rows).all()]
                assert twin[0] > number  # blind first: afterwards it could answer from memory
    assert len(places) > 20


def test_logits_that_change_while_they_are_scored_earn_nothing():
    """Raised after their sum was taken, they would say more than certainty: a loss below zero."""
    logits, ended = torch.zeros(16, 256, 2048), threading.Event()

    def change():
        while not ended.is_set():
            logits.fill_(60.0)
            logits.zero_()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        lowest = min(referee.token_losses(logits, torch.zeros(16, 256, dtype=torch.int64), "cpu").min().item()
                     for _ in range(20))
    finally:
        ended.set()
        changing.join()
    assert lowest >= 0
