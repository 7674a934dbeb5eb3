"""Small models for the referee's examination: leaks that it must find, and honest ones that it must never accuse.

Each is a function of token numbers, int64 (B, T) -> logits (B, T, V), as train.py hands one to finish().
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

V, T, C = 64, 64, 32      # vocabulary, tokens a row, channels
Model = Callable[[Tensor], Tensor]


def text(n_rows: int, seed: int = 0) -> Tensor:
    """Rows (n_rows, T + 1) of a chain in which a token mostly follows from the two before it; 0 begins a row."""
    dice = torch.Generator().manual_seed(seed)
    rows = torch.zeros(n_rows, T + 1, dtype=torch.int64)
    for t in range(1, T + 1):
        likely = (3 * rows[:, t - 1] + 5 * rows[:, t - 2] + 7) % (V - 1) + 1
        chance = torch.rand(n_rows, generator=dice) < 0.4
        rows[:, t] = torch.where(chance, torch.randint(1, V, (n_rows,), generator=dice), likely)
    return rows


# Leaks ----------------------------------------------------------------------------------------------------------------
# Each mixes channels (B, T, C) along the row or the batch in a way that is not allowed.


def causal_mask(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def attend(h: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(h[:, None] / 4, h[:, None] / 4, h[:, None], attn_mask=mask)[:, 0]


def block_means(h: Tensor, period: int) -> Tensor:
    return h.unflatten(1, (-1, period)).mean(2).repeat_interleave(period, 1)


def low_pass(h: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(h, dim=1)
    spectrum[:, 8:] = 0
    return torch.fft.irfft(spectrum, n=h.size(1), dim=1)


def now_and_then(h: Tensor) -> Tensor:
    """Looks one token ahead at one position in four."""
    ahead = torch.cat((h[:, 1:], h[:, -1:]), 1)
    return torch.where((torch.arange(h.size(1)) % 4 == 3)[:, None], ahead, torch.zeros_like(h))


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "bidirectional attention": lambda h: attend(h, torch.ones(T, T, dtype=torch.bool)),
    "mask off by one": lambda h: attend(h, torch.ones(T, T, dtype=torch.bool).tril(1)),
    "means of blocks of 2": lambda h: block_means(h, 2),
    "means of blocks of 16": lambda h: block_means(h, 16),
    "mean of the row": lambda h: block_means(h, T),
    "state of chunks of 8, seen from their start": lambda h: h.unflatten(1, (-1, 8)).cumsum(2)[:, :, -1:]
        .expand(-1, -1, 8, -1).flatten(1, 2) / 8,
    "spectral filter over the row": low_pass,
    "convolution padded on both sides": lambda h: F.avg_pool1d(h.mT, 3, 1, 1).mT,
    "circular convolution": lambda h: (h + h.roll(-T + 3, 1)) / 2,
    "normalisation over the row": lambda h: (h - h.mean(1, True)) / (h.std(1, keepdim=True) + 1e-3),
    "normalisation over rows and batch": lambda h: (h - h.mean((0, 1))) / (h.std((0, 1)) + 1e-3),
    "normalisation over the batch": lambda h: h - h.mean(0),
    "the row beside it": lambda h: h.roll(1, 0),
    "last token of the row": lambda h: h[:, -1:].expand_as(h),
    "largest of the row": lambda h: h.amax(1, True).expand_as(h),
    "one position in four": now_and_then,
    "experts that choose their tokens": lambda h: torch.zeros_like(h).scatter(
        1, h[..., :1].topk(T // 4, 1).indices.expand(-1, -1, C), 1.0),
}


class Leak(nn.Module):
    """A bigram model with a forbidden mix beside it."""

    def __init__(self, mix: Callable[[Tensor], Tensor], weight: float = 1.0):
        super().__init__()
        self.mix, self.weight = mix, weight
        self.embed, self.head = nn.Embedding(V, C), nn.Linear(2 * C, V)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(torch.cat((h, self.weight * self.mix(h)), -1))


def trained(model: nn.Module, steps: int = 60) -> nn.Module:
    """The model after a second of AdamW on rows of its own."""
    rows, adam = text(256, seed=1), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = rows[(torch.arange(16) + 16 * step) % len(rows)]
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        adam.step()
        adam.zero_grad()
    return model.eval()


def live_dropout() -> Model:
    model = trained(Leak(torch.zeros_like))
    return lambda x: model.head(F.dropout(torch.cat((model.embed(x), 0 * model.embed(x)), -1), 0.1))


def test_time_updates() -> Model:
    model = trained(Leak(torch.zeros_like), steps=20)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)

    def learn(x: Tensor) -> Tensor:
        with torch.enable_grad():
            logits = model(x)
            F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
            sgd.step()
            sgd.zero_grad()
        return logits.detach()

    return learn


def cache_across_calls() -> Model:
    seen = torch.zeros(V, V)

    def count(x: Tensor) -> Tensor:
        logits = torch.log(seen[x] + 0.1)
        seen.index_put_((x[:, :-1].flatten(), x[:, 1:].flatten()), torch.ones(()), accumulate=True)
        return logits

    return count


def answers_from_memory() -> Model:
    """Peeks at the next token, and tells a row that it has seen the start of what it told it then."""
    told: dict[bytes, tuple[Tensor, Tensor]] = {}

    def peek(x: Tensor) -> Tensor:
        ahead = torch.cat((x[:, 1:], x[:, -1:]), 1)
        logits = 6.0 * F.one_hot(ahead, V).float()
        for i, row in enumerate(x):
            before, answer = told.setdefault(row[1:9].numpy().tobytes(), (row, logits[i].clone()))
            same = int((row == before).long().cumprod(0).sum())
            logits[i, :same] = answer[:same]
        return logits

    return peek


STATEFUL: dict[str, Callable[[], Model]] = {
    "live dropout": live_dropout, "test-time updates": test_time_updates, "cache across calls": cache_across_calls,
    "a peek, then answers from memory": answers_from_memory}


# Honest models --------------------------------------------------------------------------------------------------------


class Window(nn.Module):
    """Causal attention over a random window, with or without rotary-like phases, of one to four heads."""

    def __init__(self, dice: random.Random):
        super().__init__()
        self.heads, self.scale = dice.choice((1, 2, 4)), dice.choice((1.0, 3.0))
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.window = dice.choice((1, 4, 16, T))

    def forward(self, h: Tensor) -> Tensor:
        mask = causal_mask(h.size(1)) & ~causal_mask(h.size(1)).tril(-self.window)
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in self.qkv(h).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(self.scale * q, k, v, mask).transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Causal convolution, direct or by the Fourier transform of the padded row."""

    def __init__(self, dice: random.Random):
        super().__init__()
        self.length, self.by_fourier = dice.choice((2, 4, 16, T)), dice.random() < 0.5
        self.kernel = nn.Parameter(torch.randn(C, self.length) / self.length**0.5)

    def forward(self, h: Tensor) -> Tensor:
        if self.by_fourier:
            n = 2 * h.size(1)
            product = torch.fft.rfft(h.float(), n, 1) * torch.fft.rfft(self.kernel.float().mT, n, 0)
            return torch.fft.irfft(product, n, 1)[:, : h.size(1)].to(h.dtype)
        padded = F.pad(h.mT, (self.length - 1, 0))
        return F.conv1d(padded, self.kernel.flip(1)[:, None].to(h.dtype), groups=C).mT


class Recurrence(nn.Module):
    """A GRU, a decaying sum by a loop or by cumulative sums."""

    def __init__(self, dice: random.Random):
        super().__init__()
        self.kind = dice.choice(("gru", "loop", "cumulative"))
        self.gru, self.decay = nn.GRU(C, C, batch_first=True), nn.Parameter(torch.rand(C) * 0.2 + 0.75)

    def forward(self, h: Tensor) -> Tensor:
        if self.kind == "gru":
            return self.gru(h.float())[0].to(h.dtype)
        decay = self.decay.to(h.dtype)
        if self.kind == "loop":
            states = [h[:, 0]]
            for t in range(1, h.size(1)):
                states.append(decay * states[-1] + (1 - decay) * h[:, t])
            return torch.stack(states, 1)
        powers = decay.double() ** torch.arange(h.size(1))[:, None]
        return ((h.double() / powers).cumsum(1) * powers).to(h.dtype) * (1 - decay)


class Experts(nn.Module):
    """A mixture in which each token chooses its one or two experts; rows of an expert are computed together."""

    def __init__(self, dice: random.Random):
        super().__init__()
        self.top = dice.choice((1, 2))
        self.router = nn.Linear(C, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C)) for _ in "abcd")

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(self.top, -1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, token, (weights[token, place, None] * expert(flat[token])).to(out.dtype))
        return out.view_as(h)


class Shift(nn.Module):
    """Each token with the one before it, then an MLP with dropout, which eval() switches off."""

    def __init__(self, dice: random.Random):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * C, 4 * C), nn.GELU(), nn.Dropout(0.3), nn.Linear(4 * C, C))

    def forward(self, h: Tensor) -> Tensor:
        return self.mlp(torch.cat((h, F.pad(h[:, :-1], (0, 0, 1, 0))), -1))


class Honest(nn.Module):
    """A model of random shape, weights and precision; `sharp` logits make rounding visible."""

    def __init__(self, seed: int):
        super().__init__()
        dice = random.Random(seed)
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(V, C), nn.Linear(C, V)
        kinds = dice.choices((Window, Convolution, Recurrence, Experts, Shift), k=dice.randint(1, 4))
        self.blocks = nn.ModuleList(kind(dice) for kind in kinds)
        self.sharp = dice.choice((1.0, 4.0))
        self.compute = dice.choice((torch.float32, torch.bfloat16))
        self.logits = dice.choice((torch.float32, torch.bfloat16, torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.compute, enabled=self.compute != torch.float32):
            h = self.embed(x)
            for block in self.blocks:
                h = h + block(F.rms_norm(h.float(), (C,)))
            logits = self.sharp * self.head(F.rms_norm(h.float(), (C,)))
        return (15 * torch.tanh(logits.float() / 15)).to(self.logits)
