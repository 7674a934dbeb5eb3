"""Promises of train.py that a trial cannot show by its score: causality, windows, warm-up, accumulation, memory."""

import ast
import dataclasses
import functools
import io
import itertools
import math
import os
import re
import subprocess
import sys
import tokenize
import types
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import train
from lab import runner, tuner
from lab.scoring import LEAST_ASKS
from tests.bench import ablation

SOURCE = Path(train.__file__).read_text()
VOCAB, T = 61, 24
BOS = VOCAB - 1
SCORED_ROWS = 2048 // LEAST_ASKS  # at a time at most, of the 2048 rows that a GPU is scored on
SETTINGS = {"MAX_SEQ_LEN": T, "VOCAB_SIZE": VOCAB, "BUDGET_S": 1.0, "device": torch.device("cpu"),
            "GATE_CHANNELS": 8}
CPU_SIZE = train.Size(3, 32, 16, 4 * T, pair_rows=97)
GPU_SIZE = train.Size(8, 32, 16, 4 * T, bigram_rows=97, trigram_rows=101, whole=True)
KNOBS = {"CPU_MATRIX_LR", "CPU_LAYERS", "CPU_STEP_TOKENS", "GPU_STEP_TOKENS", "MATRIX_WARMDOWN", "MLP_RATIO"}
Optimizer = train.Optimizer
SIZES = {"cpu": CPU_SIZE, "gpu": GPU_SIZE}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setattr(train, name, value)
    torch.set_num_threads(1)  # tensors are tiny: on a busy machine two threads wait for each other
    torch.manual_seed(0)


@pytest.fixture(params=SIZES)
def size(request) -> train.Size:
    return SIZES[request.param]


def new_model(size: train.Size = CPU_SIZE) -> train.GPT:
    return train.GPT(size, VOCAB, torch.float32).eval()


def lively_model(size: train.Size = CPU_SIZE) -> train.GPT:
    """No weight is zero any more, so that every path from a token to the logits is open."""
    model = new_model(size)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def tokens(rows: int = 2, values: int = VOCAB) -> torch.Tensor:
    return torch.randint(values, (rows, T))


@dataclass(frozen=True)
class FakeBatch:
    x: torch.Tensor
    y: torch.Tensor
    progress: float


def scripted(monkeypatch, rows_of_tokens: torch.Tensor, passes: int = 1) -> None:
    """A stream over fixed rows in place of the referee's."""
    def stream(batch_size: int, seq_len: int):
        for _ in range(passes):
            for part in rows_of_tokens.split(batch_size):
                yield FakeBatch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), 0.0)
    monkeypatch.setattr(train, "stream", stream)


# The model


@pytest.mark.parametrize("values", [4, VOCAB])  # few values: much is found again
@pytest.mark.parametrize("cut", [0, 1, 7, T - 1])
def test_no_logit_sees_a_later_token(size, cut, values):
    model, x = lively_model(size), tokens(values=values)
    changed = x.clone()
    changed[:, cut:] = (x[:, cut:] + 1) % values
    with torch.no_grad():
        before, after = model(x), model(changed)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert not torch.allclose(before[:, cut], after[:, cut], atol=1e-3)


def test_rows_of_a_batch_do_not_see_each_other(size):
    model, x = lively_model(size), tokens(3, values=5)
    with torch.no_grad():
        assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-4)


def naive_last_same(keys: list[int]) -> list[int]:
    return [max((s for s in range(t) if keys[s] == keys[t]), default=-1) for t in range(len(keys))]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_last_same_is_the_last_earlier_place_with_the_key(keys):
    assert train.last_same(torch.tensor([keys]))[0].tolist() == naive_last_same(keys)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.data())
def test_last_same_and_document_starts_do_not_read_ahead(row, data):
    cut = data.draw(st.integers(1, len(row) - 1))
    x = torch.tensor([row])
    changed = torch.cat((x[:, :cut], 5 - x[:, cut:]), 1)
    assert torch.equal(train.last_same(x)[:, :cut], train.last_same(changed)[:, :cut])
    for starts, others in zip(document_of(x), document_of(changed), strict=True):
        assert torch.equal(starts[:cut], others[:cut])


def document_of(x: torch.Tensor) -> list[torch.Tensor]:
    """For each row and token the place where its document begins, by what attention is told."""
    starts = train.document_starts(x)
    flat = torch.arange(x.numel(), dtype=torch.int32)
    return list(starts[torch.searchsorted(starts, flat, right=True) - 1].view_as(x))


def test_document_starts_have_one_shape_and_a_quota_for_each_row(monkeypatch):
    monkeypatch.setattr(train, "GPU_DOCUMENTS", 3)
    x = torch.full((2, T), 1)
    x[0, [0, 4, 9, 12]] = BOS  # the fourth start is past the quota
    assert train.document_starts(x).tolist() == [0, 4, 9, T, 2 * T, 2 * T, 2 * T]


def test_histories_stop_at_the_start_of_a_document():
    x = torch.tensor([[BOS, 1, 2, BOS, 3, 4]])
    _, before, earlier = train.histories(x)
    assert before.tolist() == [[BOS, BOS, 1, BOS, BOS, 3]]
    assert earlier.tolist() == [[BOS, BOS, BOS, BOS, BOS, BOS]]


def test_induction_finds_what_followed():
    model = train.Induction(VOCAB, 8)
    with torch.no_grad():
        model.trust.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
        x = torch.tensor([[BOS, 1, 2, 3, 9, 1, 2, 3, 7, 2, 3]])
        found = model(train.histories(x))[0]
        of = lambda token, trust: trust * train.norm(model.embed.weight[token])  # noqa: E731
        assert torch.allclose(found[6], of(3, 1.0)) and torch.allclose(found[7], of(9, 2.0))
        assert torch.allclose(found[10], of(7, 1.0)) and not found[8].any()


@pytest.mark.parametrize("rows", [2**13, 50_000])
@pytest.mark.parametrize("n", [2, 3])
def test_ngrams_collide_no_more_than_chance_and_the_halves_apart(rows, n):
    table = train.Ngrams(n, rows, 2, torch.float32)
    with torch.no_grad():
        table.weight.copy_(torch.arange(2 * rows)[:, None])
    grams = torch.cartesian_prod(torch.arange(256), torch.arange(64), torch.arange(4)).unbind(1)
    found = table(tuple(gram[None] for gram in grams[:n]))[0].long()
    distinct = len({*zip(*(gram.tolist() for gram in grams[:n]), strict=True)})
    pairs = found.unique(dim=0)
    assert pairs[:, 0].max() < rows <= pairs[:, 1].min() and len(pairs) > 0.99 * distinct
    used = pairs[:, 0].bincount(minlength=rows).double()
    assert (used * (used - 1)).sum() < 1.15 * len(pairs) ** 2 / rows


def test_sdpa_equals_naive_attention():
    q, k, v = torch.randn(3, 2, T, 2, 16).unbind(0)
    assert torch.allclose(train.attend(q, k, v, T, None), naive_attention(q, k, v), atol=1e-5)


def naive_attention(q, k, v):
    y = torch.zeros_like(q)
    for i in range(q.size(1)):
        scores = torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, : i + 1]) / math.sqrt(q.size(-1))
        y[:, i] = torch.einsum("bhj,bjhd->bhd", scores.softmax(-1), v[:, : i + 1])
    return y


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sm80")
@pytest.mark.parametrize("window", [1, 16, 128])
def test_varlen_equals_sdpa_inside_documents(window):
    q, k, v = torch.randn(3, 1, 128, 2, 64, device="cuda", dtype=torch.bfloat16).unbind(0)
    starts = torch.tensor([0, 40, 128, 128], dtype=torch.int32, device="cuda")
    distance = torch.arange(128)[:, None] - torch.arange(128)[None, :]
    document = (torch.arange(128) >= 40).long()
    mask = (distance >= 0) & (distance <= window) & (document[:, None] == document[None, :])
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(z.transpose(1, 2) for z in (q, k, v)), attn_mask=mask.cuda()).transpose(1, 2)
    assert torch.allclose(train.attend(q, k, v, window, starts), wanted, atol=2e-2)


def test_last_layer_is_long_and_some_are_short():
    windows = [block.window for block in new_model(GPU_SIZE).blocks]
    assert windows == 2 * [T // 8, T // 8, T // 8, T]


def test_first_loss_is_that_of_a_uniform_guess(size):
    x = tokens()
    assert abs(new_model(size)(x, x).item() - math.log(VOCAB)) < 0.05


def test_logits_have_the_shape_that_finish_wants(size):
    with torch.no_grad():
        assert new_model(size)(tokens(3)).shape == (3, T, VOCAB)


# The optimizers


@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 128, 32), (3, 32, 96)])
def test_orthogonalise_takes_singular_values_near_one(shape):
    values = torch.linalg.svdvals(train.orthogonalise(torch.randn(shape), torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_steps_as_far_as_its_lr_and_decays_cautiously():
    weight, grad = torch.randn(2, 32, 32), torch.randn(2, 32, 32)

    def fresh(decay: float) -> torch.Tensor:
        state = torch.zeros(2, 32, 32), torch.zeros(2, 32, 1)
        return train.muon_update(weight, grad, *state, *torch.tensor((0.01, 0.0, decay)), torch.float32)

    step = weight - fresh(0.0)
    assert torch.allclose(step.norm(dim=(1, 2)), torch.full((2,), 0.01 * 32**0.5), rtol=0.15)
    shrunk = (fresh(0.0) - fresh(0.5)).abs() > 1e-7
    assert torch.equal(shrunk, (step * weight > 0) & ((0.005 * weight).abs() > 1e-7))


def test_adam_equals_the_one_of_torch():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    adam = train.Adam([ours], 0.1)
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, train.ADAM_BETA2), eps=1e-10)
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(3, 4)
        with torch.no_grad():
            adam.step(1.0)
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_parameter_learns(size):
    model = built(size)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, x = train.Optimizer(model), tokens(values=5)
    for step in range(4):  # what writes into the stream is zero at first, and hides the rest
        model(x, x).backward()
        optimizer.step(0.3, step)
        model.zero_grad()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_a_row_of_a_table_that_no_token_met_stays():
    weight, grad = torch.ones(3, 2), torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 0.0]])
    train.table_update(weight, grad, torch.zeros(3, 2), torch.tensor(0.1), torch.tensor(1 - train.GPU_TABLE_BETA2))
    assert torch.equal(weight[0], torch.ones(2)) and torch.allclose(weight[1], torch.tensor([0.9, 1.1]))


def state_of(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers(), torch.get_rng_state())]


def built(size: train.Size) -> train.GPT:
    torch.manual_seed(train.SEED)
    return new_model(size)


def test_warm_up_leaves_no_trace(size):
    model = built(size)
    torch.manual_seed(train.SEED)
    model.initialise()
    before = state_of(model)
    train.fit_rows(model, size)
    assert all(map(torch.equal, before, state_of(model)))
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def interpreted(monkeypatch):
    """The compiler's front end alone, which finds what must be compiled: its back end takes a minute here."""
    front_end = functools.partial(torch.compile, dynamic=False, backend="eager")
    monkeypatch.setattr(train, "compiled", lambda function, on_cpu=False: front_end(function))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["frames"]
    torch._dynamo.reset()


@pytest.mark.parametrize("name, free_rows", [  # of 8 rows, that fit into memory
    pytest.param("gpu", 8, marks=pytest.mark.long), ("gpu", 3), ("cpu", 1)])
def test_nothing_is_compiled_after_the_warm_up(monkeypatch, interpreted, name, free_rows):
    step = dataclasses.replace(SIZES[name], step_tokens=8 * T)
    scripted(monkeypatch, torch.randint(VOCAB, (24, T + 1)), passes=2)
    monkeypatch.setattr(train, "LAYER_NUMBERS", 0)
    monkeypatch.setattr(train, "HOST_BYTES", (free_rows + 0.5) * T * VOCAB * train.LOGIT_BYTES / train.MEMORY_SHARE)
    model = train.GPT(step, VOCAB, torch.float32).eval()
    rows, parts = train.fit_rows(model, step)
    assert rows == free_rows
    warm = interpreted["total"]
    assert 0 < warm <= 12, "a block in its few variants, the readout, each shape of the optimizer"
    train.train(model, train.Optimizer(model), rows, parts)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # as finish() does
        for n_rows in (8, 8, 3, 1):
            model(tokens(n_rows))
    assert interpreted["total"] == warm == interpreted["ok"]


# What a trial prints of the compiler, with its front end alone on a CPU and a GPU's parts at a CPU's size.
COUNTED = [
    ('return torch.compile(function, dynamic=False) if is_worth_it else function',
     'return torch.compile(function, dynamic=False, backend="eager")'),
    ("tokens, pair_rows=CPU_PAIR_ROWS)",
     "CPU_STEP_TOKENS, CPU_PAIR_ROWS, bigram_rows=97, trigram_rows=101, whole=True)"),
    ("    gc.disable()", "    import torch._dynamo.utils as found\n    gc.disable()\n"
                         '    print("warm", found.counters["frames"]["total"])'),
    ("    finish(model)\n", '    print("trained", found.counters["frames"]["total"])\n'
                            '    finish(model)\n    print("scored", found.counters["frames"]["total"])\n'),
]


def frames_of_a_trial(corpus, folder, **changes: str) -> list[int]:
    """Frames compiled in a real trial, with the real stream and the real scoring: warm, trained, scored."""
    code = ablation.without(SOURCE, [*COUNTED, ("CPU_LAYERS", "4"), *changes.items()])
    for _ in range(3):  # a step is a tenth of this budget: on a busy machine its file may be late
        done = runner.run(code, data=corpus, seed=0, budget_s=1.0, folder=folder, witness_below=-math.inf,
                          last_try=True)
        if done.val_bpb:
            break
    assert done.val_bpb, (done.reason, done.log)
    return [int(n) for n in re.findall(r"(?m)^(?:warm|trained|scored) (\d+)$", done.log + done.late_log)]


def test_a_short_budget_on_a_cpu_has_short_steps(monkeypatch):
    """Its file may be late by a small share of the budget: less than half a second in five."""
    assert train.pick_size().step_tokens * 8 == train.CPU_STEP_TOKENS
    monkeypatch.setattr(train, "BUDGET_S", 300.0)
    assert train.pick_size().step_tokens == train.CPU_STEP_TOKENS


def test_a_cpu_compiles_its_layers_where_that_pays(monkeypatch, tmp_path):
    def compiles(**names: bool) -> bool:
        return train.compiled(len, **names) is not len

    (tmp_path / "my-c++").touch(mode=0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "my-c++"))
    monkeypatch.setattr(train, "BUDGET_S", train.CPU_COMPILE_FROM_S)
    assert compiles(on_cpu=True) and not compiles()
    with monkeypatch.context() as witness:
        witness.setenv("TORCHDYNAMO_DISABLE", "1")
        assert not compiles(on_cpu=True)
    monkeypatch.setattr(train, "BUDGET_S", train.CPU_COMPILE_FROM_S - 1)
    assert not compiles(on_cpu=True)
    monkeypatch.setattr(train, "BUDGET_S", 300.0)
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert not compiles(on_cpu=True)


@pytest.mark.long
def test_a_compiled_trial_on_a_cpu_meets_its_witness(corpus, tmp_path):
    code = ablation.without(SOURCE, [("CPU_COMPILE_FROM_S", "0.0")])
    done = runner.run(code, data=corpus, seed=0, budget_s=2.0, folder=tmp_path, is_baseline=True, last_try=True)
    assert done.val_bpb and done.witnessed and (tmp_path / "cache").is_dir(), done


@pytest.mark.parametrize("step_rows", [8, pytest.param(3, marks=pytest.mark.long)])
def test_a_real_trial_compiles_nothing_after_its_warm_up(corpus, tmp_path, step_rows):
    warm, trained, scored = frames_of_a_trial(corpus, tmp_path, CPU_STEP_TOKENS=str(step_rows * corpus.max_seq_len))
    assert 0 < warm == trained == scored


@pytest.mark.parametrize("passes", [0, 2])
def test_a_stream_that_is_over_at_once_reaches_finish(monkeypatch, passes):
    scripted(monkeypatch, torch.randint(VOCAB, (4, T + 1)), passes)
    monkeypatch.setattr(train, "pick_size", lambda: CPU_SIZE)
    finished = []
    monkeypatch.setattr(train, "finish", finished.append)
    monkeypatch.setattr(train.gc, "disable", lambda: None)
    train.main()
    assert [name for name, _ in finished[0].named_parameters()] == [name for name, _ in new_model().named_parameters()]


class Greedy(nn.Module):
    """A model on a device with room for two rows."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.dtype, self.asked = model, model.dtype, []

    def forward(self, x, y=None):
        self.asked.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        return self.model(x, y)

    def initialise(self):
        self.model.initialise()


def test_micro_batch_halves_until_it_fits_and_the_weights_survive(monkeypatch):
    monkeypatch.setattr(train, "micro_batch", lambda *args: (7, 1))
    monkeypatch.setattr(train, "Optimizer", lambda model: Optimizer(model.model))
    plain = built(CPU_SIZE)
    model = Greedy(plain)
    assert train.fit_rows(model, CPU_SIZE) == (2, 4)
    fresh = built(CPU_SIZE)
    torch.manual_seed(train.SEED)
    fresh.initialise()
    assert model.asked[:3] == [7, 4, 2] and all(map(torch.equal, state_of(fresh), state_of(plain)))


@given(free=st.floats(8e9, 141e9), layers=st.integers(1, 40), heads=st.integers(1, 40), exponent=st.integers(8, 21),
       odd=st.integers(0, 99), seq_len=st.sampled_from([64, 256, 1000, 2048]), vocab=st.sampled_from([2048, 50257]))
def test_micro_batches_make_up_a_step_on_any_card(free, layers, heads, exponent, odd, seq_len, vocab):
    size = train.Size(layers, 64 * heads, 64, 2**exponent + odd)
    rows, parts = train.micro_batch(size, free, seq_len, vocab, torch.bfloat16)
    wanted = max(1, round(size.step_tokens / seq_len))
    assert rows >= 1 and parts >= 1 and wanted <= rows * parts < wanted + parts
    fewer, more = train.micro_batch(size, free / 2, seq_len, vocab, torch.float32)
    assert fewer <= rows and more >= parts


CARDS = {8: 27, 12: 27, 16: 95, 24: 155, 40: 250, 48: 115, 80: 650, 141: 680}  # GB: TFLOP/s of a known card
OLD_CARDS = {6: 5, 8: 8, 11: 14, 16: 8, 24: 14}  # the same of cards without bfloat16, as the 2080 Ti and the T4


@given(st.floats(1, 2000), st.floats(8e9, 200e9))
def test_every_card_has_a_size_whose_tables_its_memory_holds(speed, total_bytes):
    size = train.fit(speed, total_bytes)
    slower = train.fit(speed / 2, total_bytes)
    assert size.width % size.head_width == 0 and size.layers >= 2 and size.step_tokens >= 2048
    assert slower.layers <= size.layers and slower.width <= size.width and slower.step_tokens <= size.step_tokens
    numbers = (size.layers // train.VALUE_EVERY * size.bigram_rows + size.trigram_rows) * size.width
    assert 0 < numbers * train.TABLE_BYTES < 1.3 * train.TABLE_SHARE * total_bytes


CARD_SIZES = [  # capability, multiprocessors, GB; layers, width
    ((7, 5), 40, 16, 3, 256), ((8, 6), 28, 12, 4, 384), ((8, 6), 82, 24, 5, 384), ((8, 6), 84, 48, 5, 384),
    ((8, 9), 128, 24, 6, 512), ((8, 0), 108, 40, 6, 512), ((9, 0), 132, 80, 8, 640), ((9, 0), 132, 141, 8, 768),
    ((10, 0), 148, 180, 8, 768), ((12, 0), 170, 32, 6, 512)]


@pytest.mark.parametrize("capability, n_cores, gigabytes, layers, width", CARD_SIZES)
def test_a_card_has_one_size_in_every_process(monkeypatch, capability, n_cores, gigabytes, layers, width):
    card = types.SimpleNamespace(major=capability[0], minor=capability[1], multi_processor_count=n_cores,
                                 total_memory=gigabytes * 2**30)
    monkeypatch.setattr(train, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    size = train.pick_size()
    assert (size.layers, size.width) == (layers, width) and size == train.pick_size()


def test_the_h100_has_the_size_of_the_record_and_known_cards_lie_far_from_the_ladders_limits(monkeypatch):
    monkeypatch.setattr(train, "VOCAB_SIZE", 8192)
    size = train.fit(650, 85e9)
    assert (size.layers, size.width, size.step_tokens, size.bigram_rows) == (8, 640, 72 * 2048, 48 * 8192)
    assert train.fit(680, 150e9).width == 768
    for gigabytes, speed in CARDS.items():
        assert len({train.fit(speed * factor, gigabytes * 1.06e9) for factor in (0.9, 1.0, 1.1)}) == 1


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors alive, and the most at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def gone(self, key: int, n_bytes: int) -> None:
        self.alive.discard(key)
        self.now -= n_bytes


@pytest.fixture
def full_size(monkeypatch):
    """Fake tensors of a real size; they have no values, so there is nothing to draw."""
    from torch.nn.attention.varlen import varlen_attn

    real = {"VOCAB_SIZE": 8192, "MAX_SEQ_LEN": 2048, "GATE_CHANNELS": 32, "varlen_attn": varlen_attn}
    for name, value in real.items():
        monkeypatch.setattr(train, name, value, raising=False)
    monkeypatch.setattr(train.GPT, "initialise", lambda self: None)
    for layer in (nn.Linear, nn.Embedding):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)


def cards(known: dict, few: set) -> list:
    """Each card, alone and half held by other programs; all but a few in the long run, for each takes 1 to 2 s."""
    return [pytest.param(*case, marks=() if case in few else pytest.mark.long)
            for case in itertools.product(known, (0.0, 0.5))]


def memory_of_a_step(size: train.Size, dtype: torch.dtype, memory: float, held: float) -> tuple[float, float, float]:
    """Bytes at most in use: by a step beside what lasts, by scoring; and what was free. Without a compiler."""
    with FakeTensorMode(), Meter() as meter:
        model = train.GPT(size, 8192, dtype).eval()
        optimizer = train.Optimizer(model)
        lasting = meter.now
        free = (memory - lasting) * (1 - held)
        rows, parts = train.micro_batch(size, free, 2048, 8192, dtype)
        assert rows * parts * 2048 >= size.step_tokens
        x = torch.zeros(rows, 2048, dtype=torch.int64)
        for step in range(2):
            model(x, x).backward()
            optimizer.step(0.0, step)
            model.zero_grad()
        training, meter.peak = meter.peak - lasting, meter.now
        n_rows = min(rows * parts, SCORED_ROWS)
        with torch.no_grad():
            logits = model(torch.zeros(n_rows, 2048, dtype=torch.int64))
        assert logits.shape == (n_rows, 2048, 8192) and logits.dtype in (torch.float16, torch.float32)
        return training, meter.peak - lasting, free


@pytest.mark.parametrize(("gigabytes", "held"), cards(CARDS, {(8, 0.0), (8, 0.5), (24, 0.0), (80, 0.0), (141, 0.5)}))
def test_the_full_recipe_fits_every_card(full_size, gigabytes, held):
    size = train.fit(CARDS[gigabytes], gigabytes * 2**30)
    training, scoring, free = memory_of_a_step(size, torch.bfloat16, 0.95 * gigabytes * 2**30, held)
    assert max(training, scoring) < free, f"{training / free:.2f} {scoring / free:.2f}"


@pytest.mark.parametrize(("gigabytes", "held"), cards(OLD_CARDS, {(6, 0.5), (24, 0.0)}))
def test_a_card_without_bfloat16_holds_its_size_in_float32(full_size, gigabytes, held):
    size = train.fit(OLD_CARDS[gigabytes], gigabytes * 2**30)
    training, scoring, free = memory_of_a_step(size, torch.float32, 0.95 * gigabytes * 2**30, held)
    assert max(training, scoring) < free, f"{training / free:.2f} {scoring / free:.2f}"


def test_an_estimate_that_is_too_small_would_be_seen(full_size, monkeypatch):
    monkeypatch.setattr(train, "LAYER_NUMBERS", train.LAYER_NUMBERS // 2)
    size = train.fit(CARDS[80], 80 * 2**30)
    training, _, free = memory_of_a_step(size, torch.bfloat16, 0.95 * 80 * 2**30, 0.3)
    assert training > free


# The loop


def test_accumulation_equals_one_large_batch(monkeypatch):
    rows = torch.randint(VOCAB, (4, T + 1))
    scripted(monkeypatch, rows)
    results = []
    for size, parts in ((4, 1), (1, 4)):
        torch.manual_seed(1)
        model = lively_model()
        before = model.blocks[0].up.detach().clone()
        train.train(model, train.Optimizer(model), size, parts)
        assert not torch.equal(before, model.blocks[0].up)
        results.append(model.blocks[0].up.detach() - before)
    assert torch.allclose(*results, atol=1e-5)


def test_training_lowers_the_loss(monkeypatch):
    rows = torch.randint(VOCAB, (4, T + 1))
    scripted(monkeypatch, rows, passes=40)
    model = new_model()
    train.train(model, train.Optimizer(model), 4, 1)
    assert model(rows[:, :-1], rows[:, 1:]).item() < 0.5 * math.log(VOCAB)


@pytest.mark.parametrize("bad_row", [0, 1])
def test_a_nan_in_any_micro_batch_ends_the_trial(monkeypatch, bad_row):
    rows = torch.zeros(2, T + 1, dtype=torch.int64)
    rows[bad_row, 3] = 1
    scripted(monkeypatch, rows)
    model = new_model()
    with torch.no_grad():
        model.embed.weight[1] = math.nan
    monkeypatch.setattr(train, "PRINT_EVERY_S", 0.0)
    with pytest.raises(SystemExit, match="loss is not finite at step 1"):
        train.train(model, train.Optimizer(model), 1, 2)


def test_progress_lines_end_with_a_newline_and_are_rare(monkeypatch, capsys):
    rows = torch.randint(VOCAB, (2, T + 1))
    for every_s, least, most in ((1e9, 0, 0), (0.0, 5, 5)):
        monkeypatch.setattr(train, "PRINT_EVERY_S", every_s)
        scripted(monkeypatch, rows, passes=5)
        model = new_model()
        train.train(model, train.Optimizer(model), 2, 1)
        printed = capsys.readouterr().out
        assert least <= printed.count("\n") <= most and "\r" not in printed
    assert printed.splitlines()[0].startswith("step 1 | 0% | loss ")


# The text, which a model edits by search and replace


def test_importing_trains_nothing(tmp_path):
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.ClassDef, ast.If)
    *body, last = ast.parse(SOURCE).body
    assert all(isinstance(node, allowed) for node in body[1:]) and ast.unparse(last.test) == "__name__ == '__main__'"
    environment = os.environ | {"AUTORESEARCH_CACHE": str(tmp_path), "AUTORESEARCH_DATA": "builtin"}
    done = subprocess.run([sys.executable, "-c", "import train"], cwd=Path(train.__file__).parent, env=environment,
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (0, "", [])


def test_every_constant_has_its_own_line_a_comment_and_one_meaning():
    comments = {token.start[0]: token.string for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline)
                if token.type == tokenize.COMMENT}
    names = Counter()
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            names[node.targets[0].id] += 1
            assert node.lineno in comments or node.lineno - 1 in comments, ast.unparse(node.targets[0])
    assert len(names) > 30 and set(names.values()) == {1}


def test_the_tuner_finds_the_knobs_and_leaves_speed_alone():
    found = tuner.knobs(SOURCE)
    assert len(found) >= 25 and found.keys() >= KNOBS
    assert not {"PRINT_EVERY_S", "MEMORY_SHARE", "LAYER_NUMBERS", "LOGIT_BYTES", "HOST_BYTES"} & found.keys()


def copy_of_train(monkeypatch, changes: dict[str, float]) -> types.ModuleType:
    module = types.ModuleType("copy_of_train")
    monkeypatch.setitem(sys.modules, "copy_of_train", module)  # dataclasses look their module up
    code = ablation.without(SOURCE, [(name, repr(value)) for name, value in changes.items()])
    exec(compile(code, "copy_of_train", "exec"), vars(module))
    for name in ("MAX_SEQ_LEN", "VOCAB_SIZE", "BUDGET_S", "device"):  # of a short budget nothing is compiled
        setattr(module, name, SETTINGS[name])
    return module


def trained(monkeypatch, changes: dict[str, float]) -> list[float]:
    """The losses of some steps with constants changed."""
    module = copy_of_train(monkeypatch, {"CPU_WIDTH": 64, "CPU_PAIR_ROWS": 128} | changes)
    torch.manual_seed(0)
    size = module.pick_size()
    model = module.GPT(size, VOCAB, torch.float32).eval()
    optimizer, x, losses = module.Optimizer(model), tokens(), [float(size.step_tokens)]
    for step in range(4):
        loss = model(x, x)
        loss.backward()
        optimizer.step(0.3 + step / 6, step)
        model.zero_grad()
        losses.append(loss.item())
    return losses


ON_A_CPU = [name for name in tuner.knobs(SOURCE) if not name.startswith("GPU_")]


@functools.cache
def trained_as_it_is() -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, {})


@pytest.mark.parametrize("name", ON_A_CPU)
def test_every_knob_of_a_cpu_changes_its_training(monkeypatch, name):
    value = {"CPU_WIDTH": 64, "CPU_PAIR_ROWS": 128}.get(name, tuner.knobs(SOURCE)[name])
    other = value / 2 if isinstance(value, float) else value // 2
    assert trained_as_it_is() != trained(monkeypatch, {name: other})


def test_every_three_lines_are_unique_and_the_file_is_short():
    lines = [line.strip() for line in SOURCE.splitlines()]
    windows = Counter(zip(lines, lines[1:], lines[2:], strict=False))
    assert [window for window, n in windows.items() if n > 1] == []
    assert len(lines) <= 510


# The benchmark that takes parts away


@pytest.mark.parametrize("part", ablation.PARTS)
def test_every_ablation_still_trains(monkeypatch, part):
    module = types.ModuleType("ablated")
    monkeypatch.setitem(sys.modules, "ablated", module)  # dataclasses look their module up
    exec(compile(ablation.without(SOURCE, ablation.PARTS[part]), "ablated", "exec"), vars(module))
    for name, value in SETTINGS.items():
        setattr(module, name, value)
    size = module.Size(3, 32, 16, 4 * T, pair_rows=97)
    model = module.GPT(size, VOCAB, torch.float32).eval()
    optimizer, x = module.Optimizer(model), tokens()
    losses = []
    for step in range(12):
        loss = model(x, x)
        loss.backward()
        optimizer.step(step / 12, step)
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
