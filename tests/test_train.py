"""Promises of train.py that a trial cannot show by its score: causality, windows, warm-up, accumulation, memory."""

import ast
import io
import math
import os
import subprocess
import sys
import tokenize
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import train
from lab import tuner
from tests.bench import ablation

SOURCE = Path(train.__file__).read_text()
VOCAB, T = 61, 24
SETTINGS = {"MAX_SEQ_LEN": T, "VOCAB_SIZE": VOCAB, "device": torch.device("cpu")}
TINY = train.Size(layers=3, width=32, head_width=16, step_tokens=4 * T, bigram_rows=97)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setattr(train, name, value)
    torch.manual_seed(0)


def new_model(size: train.Size = TINY) -> train.GPT:
    return train.GPT(size, VOCAB, torch.float32, flash=False).eval()


def lively_model() -> train.GPT:
    """No weight is zero any more, so that every path from a token to the logits is open."""
    model = new_model()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, T))


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
                yield FakeBatch(part[:, :-1], part[:, 1:], 0.0)
    monkeypatch.setattr(train, "stream", stream)


# The model


@pytest.mark.parametrize("cut", [0, 1, 7, T - 1])
def test_no_logit_sees_a_later_token(cut):
    model, x = lively_model(), tokens()
    changed = x.clone()
    changed[:, cut] = (x[:, cut] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(x), model(changed)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert not torch.allclose(before[:, cut], after[:, cut], atol=1e-3)


def test_rows_of_a_batch_do_not_see_each_other():
    model, x = lively_model(), tokens(3)
    with torch.no_grad():
        assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-4)


def test_pair_rows_depend_on_two_tokens_and_stay_in_the_table():
    x = torch.randint(8192, (64, 256))
    rows = train.pair_rows(x, 97)
    assert rows.min() >= 0 and rows.max() < 97
    same_pair = (x[:, 1:, None] == x[0, 5]) & (x[:, :-1, None] == x[0, 4])
    assert rows[:, 1:][same_pair[..., 0]].unique().numel() == 1


@pytest.mark.parametrize("table", [2**13, 2**16, 50_000])
def test_pair_rows_collide_no_more_than_chance(table):
    pairs = torch.cartesian_prod(torch.arange(2048), torch.arange(64))
    used = train.pair_rows(pairs, table)[:, 1].bincount(minlength=table).double()
    assert (used * (used - 1)).sum() < 1.15 * len(pairs) ** 2 / table


@pytest.mark.parametrize("window", [1, 5, T])
def test_a_token_reaches_no_further_than_the_window(window):
    attention = train.Attention(TINY, window, has_value_embedding=False, flash=False)
    for p in attention.parameters():
        nn.init.normal_(p, std=0.3)
    cos, sin = torch.ones(T, 1, 1, 8), torch.zeros(T, 1, 1, 8)
    x = torch.randn(1, T, 32)
    changed = x.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        moved = (attention(x, None, cos, sin) - attention(changed, None, cos, sin)).abs().amax(dim=(0, 2))
    reached = torch.arange(T)[moved > 1e-6]
    assert reached.tolist() == list(range(3, min(T, 3 + window + 1)))


def naive_attention(q, k, v, window):
    y = torch.zeros_like(q)
    for i in range(q.size(1)):
        first = max(0, i - window)
        scores = torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, first : i + 1]) / math.sqrt(q.size(-1))
        y[:, i] = torch.einsum("bhj,bjhd->bhd", scores.softmax(-1), v[:, first : i + 1])
    return y


@pytest.mark.parametrize("window", [1, 6, T])
def test_sdpa_equals_naive_attention(window):
    q, k, v = torch.randn(3, 2, T, 2, 16).unbind(0)
    mask = None if window >= T else train.window_mask(T, window)
    assert torch.allclose(train.attend_sdpa(q, k, v, mask), naive_attention(q, k, v, window), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sm80")
@pytest.mark.parametrize("window", [1, 16, 128])
def test_varlen_equals_sdpa(window):
    q, k, v = torch.randn(3, 4, 128, 2, 64, device="cuda", dtype=torch.bfloat16).unbind(0)
    mask = None if window >= 128 else train.window_mask(128, window).cuda()
    assert torch.allclose(train.attend_varlen(q, k, v, window), train.attend_sdpa(q, k, v, mask), atol=2e-2)


def test_last_layer_is_long_and_some_are_short():
    windows = [attention.window for attention in new_model().attentions]
    assert windows[-1] == T and windows[0] == T // train.SHORT_WINDOW


def test_first_loss_is_that_of_a_uniform_guess():
    x = tokens()
    assert abs(new_model()(x, x).item() - math.log(VOCAB)) < 0.05


def test_logits_have_the_shape_that_finish_wants():
    with torch.no_grad():
        assert new_model()(tokens(3)).shape == (3, T, VOCAB)


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


def test_adamw_equals_the_one_of_torch():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    state = torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(())
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3, betas=(0.8, train.ADAM_BETA2), eps=1e-10)
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(3, 4)
        train.adamw(ours, *state, 0.1, 0.3, 0.8)
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def state_of(model: nn.Module, optimizer: train.Optimizer) -> list[torch.Tensor]:
    states = (*optimizer.muon.state.values(), *optimizer.state.values())
    return [p.detach().clone() for p in model.parameters()] + [
        tensor.clone() for tensors in states for tensor in tensors] + [torch.get_rng_state()]


def test_warm_up_leaves_no_trace():
    model = lively_model()
    optimizer = train.Optimizer(model, compiled=False)
    before = state_of(model, optimizer)
    train.warm_up(model, optimizer, rows=2)
    after = state_of(model, optimizer)
    assert len(before) == len(after) and all(map(torch.equal, before, after))
    assert all(p.grad is None for p in model.parameters())


class Greedy(nn.Module):
    """A model on a device with room for two rows."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.asked = model, []

    def forward(self, x, y=None):
        self.asked.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        return self.model(x, y)


def test_micro_batch_halves_until_it_fits_and_the_weights_survive():
    model = Greedy(lively_model())
    optimizer = train.Optimizer(model.model, compiled=False)
    before = state_of(model, optimizer)
    assert train.shrink_to_fit(model, optimizer, rows=7, parts=1) == (2, 4)
    assert model.asked[:3] == [7, 4, 2] and all(map(torch.equal, before, state_of(model, optimizer)))


@given(free=st.floats(8e9, 141e9), layers=st.integers(1, 40), heads=st.integers(1, 40), exponent=st.integers(8, 21),
       odd=st.integers(0, 99), seq_len=st.sampled_from([64, 256, 1000, 2048]), vocab=st.sampled_from([2048, 50257]))
def test_micro_batches_make_up_a_step_on_any_card(free, layers, heads, exponent, odd, seq_len, vocab):
    size = train.Size(layers, 64 * heads, 64, 2**exponent + odd, 2**16)
    rows, parts = train.micro_batch(size, free, seq_len, vocab)
    wanted = max(1, round(size.step_tokens / seq_len))
    assert rows >= 1 and parts >= 1 and wanted <= rows * parts < wanted + parts
    fewer, more = train.micro_batch(size, free / 2, seq_len, vocab)
    assert fewer <= rows and more >= parts


@pytest.mark.parametrize("gigabytes", [8, 11.3, 12, 16, 24, 40, 48, 80, 94, 141])
def test_every_card_has_a_size_that_its_memory_holds(gigabytes):
    size = train.pick_size("cuda", int(gigabytes * 1e9))
    rows, parts = train.micro_batch(size, 0.9 * gigabytes * 1e9, 2048, 8192)
    assert rows >= 4 and rows * parts * 2048 >= size.step_tokens
    assert size.width % size.head_width == 0
    assert train.pick_size("cuda", int(2 * gigabytes * 1e9)).width >= size.width


# The loop


def test_accumulation_equals_one_large_batch(monkeypatch):
    rows = torch.randint(VOCAB, (4, T + 1))
    scripted(monkeypatch, rows)
    results = []
    for size, parts in ((4, 1), (1, 4)):
        torch.manual_seed(1)
        model = lively_model()
        before = model.mlps[0].up.weight.detach().clone()
        train.train(model, train.Optimizer(model, compiled=False), size, parts)
        assert not torch.equal(before, model.mlps[0].up.weight)
        results.append(model.mlps[0].up.weight.detach() - before)
    assert torch.allclose(*results, atol=1e-5)


def test_training_lowers_the_loss(monkeypatch):
    rows = torch.randint(VOCAB, (4, T + 1))
    scripted(monkeypatch, rows, passes=40)
    model = new_model()
    train.train(model, train.Optimizer(model, compiled=False), 4, 1)
    assert model(rows[:, :-1], rows[:, 1:]).item() < 0.5 * math.log(VOCAB)


@pytest.mark.parametrize("bad_row", [0, 1])
def test_a_nan_in_any_micro_batch_ends_the_trial(monkeypatch, bad_row):
    rows = torch.zeros(2, T + 1, dtype=torch.int64)
    rows[bad_row, 3] = 1
    scripted(monkeypatch, rows)
    model = new_model()
    with torch.no_grad():
        model.embed.weight[1] = math.nan
    with pytest.raises(SystemExit, match="loss is not finite at step 0"):
        train.train(model, train.Optimizer(model, compiled=False), 1, 2)


def test_progress_lines_end_with_a_newline_and_are_rare(monkeypatch, capsys):
    rows = torch.randint(VOCAB, (2, T + 1))
    for every_s, least, most in ((1e9, 0, 0), (0.0, 4, 4)):
        monkeypatch.setattr(train, "PRINT_EVERY_S", every_s)
        scripted(monkeypatch, rows, passes=5)
        model = new_model()
        train.train(model, train.Optimizer(model, compiled=False), 2, 1)
        printed = capsys.readouterr().out
        assert least <= printed.count("\n") <= most and "\r" not in printed
    assert printed.splitlines()[0].startswith("step 2 | 0% | loss ")


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
    assert len(found) >= 25 and {"MATRIX_LR", "EMBED_LR", "BIGRAM_LR", "WARMDOWN", "MLP_RATIO"} <= found.keys()
    assert not {"PRINT_EVERY_S", "MEMORY_SHARE", "LAYER_BYTES", "LOGIT_BYTES", "HOST_BYTES"} & found.keys()


def test_every_three_lines_are_unique_and_the_file_is_short():
    lines = [line.strip() for line in SOURCE.splitlines()]
    windows = Counter(zip(lines, lines[1:], lines[2:], strict=False))
    assert [window for window, n in windows.items() if n > 1] == []
    assert len(lines) <= 450


# The benchmark that takes parts away


@pytest.mark.parametrize("part", ablation.PARTS)
def test_every_ablation_still_trains(monkeypatch, part):
    module = types.ModuleType("ablated")
    monkeypatch.setitem(sys.modules, "ablated", module)  # dataclasses look their module up
    exec(compile(ablation.without(SOURCE, ablation.PARTS[part]), "ablated", "exec"), vars(module))
    for name, value in SETTINGS.items():
        setattr(module, name, value)
    model = module.GPT(TINY, VOCAB, torch.float32, flash=False).eval()
    optimizer, x = module.Optimizer(model, compiled=False), tokens()
    module.warm_up(model, optimizer, rows=2)
    first = model(x, x)
    first.backward()
    optimizer.step(0.0, 0)
    assert model(x, x) < first
