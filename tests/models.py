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
    rng = torch.Generator().manual_seed(seed)
    rows = torch.zeros(n_rows, T + 1, dtype=torch.int64)
    for t in range(1, T + 1):
        likely = (3 * rows[:, t - 1] + 5 * rows[:, t - 2] + 7) % (V - 1) + 1
        chance = torch.rand(n_rows, generator=rng) < 0.4
        rows[:, t] = torch.where(chance, torch.randint(1, V, (n_rows,), generator=rng), likely)
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
# A block mixes channels (B, T, C) of tokens (B, T), each place from itself and those before it.

HASHES = (2654435761, 2246822519, 3266489917)  # odd constants of an n-gram's places
OPENERS = 8                                    # tokens below this number begin a document
MOST_DOCUMENTS = 4                             # begun in a row; later openers begin none


def past(z: Tensor, n_places: int) -> Tensor:
    """What stood n_places before, zeros before the row."""
    return F.pad(z, (0,) * (2 * (z.dim() - 2)) + (n_places, 0))[:, : z.size(1)]


class Window(nn.Module):
    """Causal attention over a random window, of one to four heads."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.heads, self.scale = rng.choice((1, 2, 4)), rng.choice((1.0, 3.0))
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.window = rng.choice((1, 4, 16, T))

    def mask(self, x: Tensor) -> Tensor:
        return causal_mask(T) & ~causal_mask(T).tril(-self.window)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in self.qkv(h).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(self.scale * q, k, v, self.mask(x))
        return self.out(mixed.transpose(1, 2).flatten(2))


class Documents(Window):
    """Attention within a document; a row has a quota of documents, so that shapes are fixed."""

    def document(self, x: Tensor) -> Tensor:
        return (x < OPENERS).long().cumsum(1).clamp(max=MOST_DOCUMENTS)

    def mask(self, x: Tensor) -> Tensor:
        document = self.document(x)
        return (causal_mask(T) & (document[:, :, None] == document[:, None]))[:, None]


class LinearAttention(nn.Module):
    """Attention without a softmax: as a masked product, as running sums, or as both over chunks of 16."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.kind, self.qkv = rng.choice(("product", "sums", "chunks")), nn.Linear(C, 3 * C)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        norm = (q * k.cumsum(1)).sum(2, keepdim=True)
        if self.kind == "sums":
            states = (k[..., None] * v[:, :, None]).cumsum(1)
            return torch.einsum("btc,btcd->btd", q, states) / norm
        size = T if self.kind == "product" else 16
        q, k, v = (z.unflatten(1, (-1, size)) for z in (q, k, v))  # (B, chunks, size, C)
        inside = (q @ k.mT * causal_mask(size)) @ v
        states = (k.mT @ v).cumsum(1)
        before = q @ F.pad(states[:, :-1], (0, 0, 0, 0, 1, 0))
        return (inside + before).flatten(1, 2) / norm


class Convolution(nn.Module):
    """Causal convolution: direct, dilated, or by the Fourier transform of the padded row."""

    def __init__(self, rng: random.Random, kinds: tuple[str, ...] = ("direct",)):
        super().__init__()
        self.kind, self.length = rng.choice(kinds), rng.choice((2, 4, 16, T))
        self.dilation = 1
        if self.kind == "dilated":
            self.length, self.dilation = rng.choice((2, 3)), rng.choice((2, 8, 16))
        self.kernel = nn.Parameter(torch.randn(C, self.length) / self.length**0.5)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        if self.kind == "Fourier":
            n = 2 * h.size(1)
            product = torch.fft.rfft(h.float(), n, 1) * torch.fft.rfft(self.kernel.float().mT, n, 0)
            return torch.fft.irfft(product, n, 1)[:, : h.size(1)].to(h.dtype)
        padded = F.pad(h.mT, ((self.length - 1) * self.dilation, 0))
        kernel = self.kernel.flip(1)[:, None].to(h.dtype)
        return F.conv1d(padded, kernel, dilation=self.dilation, groups=C).mT


class Recurrence(nn.Module):
    """A decaying sum, by a loop or by cumulative sums; or torch's own recurrent networks."""

    def __init__(self, rng: random.Random, kinds: tuple[str, ...] = ("loop", "cumulative")):
        super().__init__()
        self.kind, self.decay = rng.choice(kinds), nn.Parameter(torch.rand(C) * 0.2 + 0.75)
        network = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}.get(self.kind)
        self.network = network and network(C, C, batch_first=True)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        if self.network is not None:
            return self.network(h.float())[0].to(h.dtype)
        decay = self.decay.to(h.dtype)
        if self.kind == "loop":
            states = [h[:, 0]]
            for t in range(1, h.size(1)):
                states.append(decay * states[-1] + (1 - decay) * h[:, t])
            return torch.stack(states, 1)
        powers = decay.double() ** torch.arange(h.size(1))[:, None]
        return ((h.double() / powers).cumsum(1) * powers).to(h.dtype) * (1 - decay)


class Experts(nn.Module):
    """A mixture in which each token chooses its one or two experts; tokens of an expert are computed together."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.top = rng.choice((1, 2))
        self.router = nn.Linear(C, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C)) for _ in "abcd")

    def taken(self, tokens: Tensor) -> slice:
        """Which of the tokens that chose an expert it takes."""
        return slice(None)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        flat = h.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(self.top, -1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            token, place = token[self.taken(token)], place[self.taken(token)]
            out.index_add_(0, token, (weights[token, place, None] * expert(flat[token])).to(out.dtype))
        return out.view_as(h)


class Shift(nn.Module):
    """Each token with the one before it, then an MLP with dropout, which eval() switches off."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * C, 4 * C), nn.GELU(), nn.Dropout(0.3), nn.Linear(4 * C, C))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.mlp(torch.cat((h, past(h, 1)), -1))


class Int8(nn.Module):
    """An MLP whose weights are int8 buffers and whose activations are int8 too, scaled by the largest of a token."""

    def __init__(self, rng: random.Random):
        super().__init__()
        up, down = torch.randn(C, 2 * C), torch.randn(2 * C, C)
        for name, weight in (("up", up), ("down", down)):
            self.register_buffer(name, (weight * 127 / weight.abs().max()).round().to(torch.int8))
        self.steps = rng.choice((7, 127))

    def largest(self, h: Tensor) -> Tensor:
        return h.abs().amax(2, keepdim=True)

    def product(self, h: Tensor, weight: Tensor) -> Tensor:
        scale = (self.largest(h) / self.steps).clamp(min=1e-6)
        return (h / scale).round() @ weight.float() * scale / (127 * C**0.5)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.product(F.relu(self.product(h.float(), self.up)), self.down)


class Sparse(nn.Module):
    """An MLP of which only the largest activations of a token pass."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.up, self.down, self.top = nn.Linear(2 * C, 4 * C), nn.Linear(4 * C, C), rng.choice((1, 4, 16))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        wide = self.up(torch.cat((h, past(h, 1)), -1))
        values, places = wide.topk(self.top, -1)
        return self.down(torch.zeros_like(wide).scatter(2, places, values))


class Neighbours(nn.Module):
    """What followed the nearest earlier places of the row; the later one of two that are as near."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.key, self.out, self.top = nn.Linear(2 * C, C), nn.Linear(C, C), rng.choice((1, 3))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        key = F.normalize(self.key(torch.cat((h, past(h, 1)), 2)).float(), dim=2)
        near = key @ key.mT + 1e-3 * torch.arange(T)
        near = near.masked_fill(~causal_mask(T).tril(-1), -torch.inf)
        nearness, place = near.topk(self.top, 2)  # (B, T, top)
        weight = torch.where(nearness > -torch.inf, nearness.clamp(min=0), torch.zeros(()))
        rows = torch.arange(len(h))[:, None, None]
        followed = h[rows, (place + 1).clamp(max=T - 1)]  # (B, T, top, C)
        return self.out((weight[..., None] * followed).sum(2).to(h.dtype))


class Counts(nn.Module):
    """Logarithms of counted pairs, held in a buffer that grew while it learnt."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.out = nn.Linear(V, C)
        self.register_buffer("counts", torch.zeros(V, V))
        self.count(text(64, rng.randrange(100)))

    def count(self, x: Tensor) -> None:
        self.counts.index_put_((x[:, :-1].flatten(), x[:, 1:].flatten()), torch.ones(()), accumulate=True)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.out((self.counts[x] + 0.1).log())


class Table(nn.Module):
    """Embeddings of the last two and three tokens, found by their hash."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.n_rows, self.lengths = rng.choice((257, 4096)), rng.choice(((2,), (3,), (2, 3)))
        self.tables = nn.ModuleList(nn.Embedding(self.n_rows, C) for _ in self.lengths)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for length, table in zip(self.lengths, self.tables, strict=True):
            mixed = torch.zeros_like(x)
            for place in range(length):
                mixed = mixed ^ (past(x, place) + 1) * HASHES[place]
            out = out + table(mixed % self.n_rows)
        return out


class Induction(nn.Module):
    """What followed when the last token, or the last two, came before in this row: found by one stable sort."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.length, self.after = rng.choice((1, 2)), nn.Embedding(V + 1, C)

    def order(self, key: Tensor) -> Tensor:
        return key.argsort(dim=1, stable=True)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        key = x if self.length == 1 else x * V + past(x, 1)
        order = self.order(key)
        ordered = key.gather(1, order)
        same = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
        follower = x.gather(1, (past(order, 1) + 1).clamp(max=T - 1))
        found = torch.where(same, follower, torch.full_like(follower, V))
        return self.after(torch.empty_like(found).scatter(1, order, found))


def fourier(rng: random.Random) -> nn.Module:
    return Convolution(rng, ("Fourier",))


def dilated(rng: random.Random) -> nn.Module:
    return Convolution(rng, ("dilated",))


def recurrent(rng: random.Random) -> nn.Module:
    return Recurrence(rng, ("RNN", "GRU", "LSTM"))


KINDS: dict[str, Callable[[random.Random], nn.Module]] = {
    "attention": Window, "document masks": Documents, "linear attention": LinearAttention, "convolution": Convolution,
    "Fourier convolution": fourier, "dilated convolution": dilated, "decaying sum": Recurrence,
    "recurrent network": recurrent, "experts by token": Experts, "shift": Shift, "int8 weights": Int8,
    "largest activations": Sparse, "nearest neighbours": Neighbours, "counted pairs": Counts, "n-gram table": Table,
    "induction": Induction}


class Chain(nn.Module):
    """Blocks of random kind between an embedding and a head; `sharp` logits make rounding visible."""

    def __init__(self, blocks: list[nn.Module], sharp: float = 1.0, in_bfloat16: bool = False,
                 logits: torch.dtype = torch.float32):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, C), nn.Linear(C, V)
        self.blocks, self.sharp = nn.ModuleList(blocks), sharp
        self.in_bfloat16, self.logits = in_bfloat16, logits

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            h = self.embed(x)
            for block in self.blocks:
                h = h + block(F.rms_norm(h.float(), (C,)), x)
                h = h.bfloat16() if self.in_bfloat16 else h
            logits = self.sharp * self.head(F.rms_norm(h.float(), (C,)))
        return (15 * torch.tanh(logits.float() / 15)).to(self.logits)


def kinds_of(seed: int) -> list[str]:
    """Names of an honest model's blocks: each kind comes first in one of sixteen."""
    rng = random.Random(seed)
    names = list(KINDS)
    return [names[seed % len(names)], *rng.choices(names, k=rng.randrange(4))]


def Honest(seed: int) -> Chain:  # noqa: N802
    """A model of random blocks, weights and precision; three in ten compute in bfloat16."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    blocks = [KINDS[name](rng) for name in kinds_of(seed)]
    logits = rng.choice((torch.float32, torch.bfloat16, torch.float16))
    return Chain(blocks, rng.choice((1.0, 4.0, 12.0)), seed % 10 < 3, logits)


# Broken twins ---------------------------------------------------------------------------------------------------------
# Each is one of the honest blocks with a mistake that looks harmless: it depends on other places or other rows.


class UnstableSort(Induction):
    """Equal keys come in an order that depends on the whole row, as an unstable sort may leave them."""

    def __init__(self, rng: random.Random):
        super().__init__(rng)
        self.length = 1

    def order(self, key: Tensor) -> Tensor:
        shuffled = (torch.arange(T) * 37 + key.sum(1, keepdim=True)) % T
        return (key * T + shuffled).argsort(1)


class BatchQuota(Documents):
    """The quota of documents holds for the whole batch."""

    def document(self, x: Tensor) -> Tensor:
        begun = (x < OPENERS).flatten().cumsum(0)
        counted = (x < OPENERS) & (begun <= MOST_DOCUMENTS * len(x)).view_as(x)
        return counted.long().cumsum(1)


class CountsAsItAnswers(Counts):
    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        answer = super().forward(h, x)
        self.count(x)
        return answer


class BatchScale(Int8):
    """Activations are scaled by the largest of the batch, and few steps make it felt."""

    def __init__(self, rng: random.Random):
        super().__init__(rng)
        self.steps = 3

    def largest(self, h: Tensor) -> Tensor:
        return h.abs().max()


class Capacity(Experts):
    """An expert takes so many tokens of a batch, the first ones."""

    def taken(self, tokens: Tensor) -> slice:
        return slice(16 * len(self.experts))


def broken(kind: Callable[[random.Random], nn.Module]) -> Callable[[], nn.Module]:
    """A factory of a trained model with one block of this kind."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return trained(Chain([Shift(random.Random(0)), kind(random.Random(0))]))

    return make


BROKEN: dict[str, Callable[[], nn.Module]] = {
    "unstable sort": broken(UnstableSort), "quota over the batch": broken(BatchQuota),
    "counts as it answers": broken(CountsAsItAnswers), "scale by the batch's maximum": broken(BatchScale),
    "routing with a capacity": broken(Capacity)}
