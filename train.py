"""One trial: a small GPT, its optimizers, the training loop. The only file that an experiment changes.

`stream` ends when the budget is spent; `finish` hands the model to the referee. A logit depends on the weights and
on tokens up to its own place alone: a second process, whose stream is over at once, must say the same.

Letters: B rows, T tokens a row, C width, H heads, D width of a head, V vocabulary.
"""

import gc
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prepare import BUDGET_S, MAX_SEQ_LEN, SEED, VOCAB_SIZE, device, finish, stream

if device.type == "cuda":  # imports the compiler, 2 s
    from torch.nn.attention.varlen import varlen_attn

# --- Size: CPU_ counts on a CPU alone, GPU_ on every other device, the rest on both
CPU_LAYERS = 2              # blocks; three learn more a step but make fewer steps
CPU_WIDTH = 96              # C, a multiple of D
CPU_HEAD_WIDTH = 32         # D
CPU_STEP_TOKENS = 2**13     # tokens a step
CPU_PAIR_ROWS = 2**14       # rows of the table of token pairs: more collide less, fewer are faster

GPU_LAYERS = 8              # blocks on an H100; less on a smaller card
GPU_WIDTH = 640             # C; an H200 takes one head more
GPU_HEAD_WIDTH = 128        # D
GPU_STEP_TOKENS = 147_456   # tokens a step: 72 rows of 2048
GPU_BIGRAM_ROWS = 48        # rows of a table of token pairs, times V
GPU_TRIGRAM_ROWS = 96       # the same of triples

# --- Knobs: model
MLP_RATIO = 4               # hidden units of an MLP a channel
RELU_SHIFT = 0.5            # below this an MLP's unit is silent
VALUE_EVERY = 2             # layers: every 2nd, from the last, has value embeddings
GATE_CHANNELS = 32          # input channels of a gate of values or of a head's output
ROPE_BASE = 200_000.0       # longest wavelength of positions, in tokens / 2 pi
QK_SCALE = 1.15             # on normed q and k: sharper attention
INIT_SCALE = 0.68           # of uniform(+-sqrt(3 / C)), the usual scale of a matrix
HEAD_INIT = 0.001           # standard deviation of the head: the first loss is log V
SHARE_INIT = 0.1            # first share of each embedding in a layer's input
GPU_LONG_EVERY = 4          # layers: every 4th and the last see the whole row
GPU_SHORT_WINDOW = 8        # the others see T / 8 tokens back
GPU_DOCUMENTS = 16          # documents a row that attention tells apart; a quota a batch leaks
GPU_TOP_LAYERS = 3          # last layers that the logits read, by learnt shares
GPU_SOFTCAP = 15.0          # logits bend to 1.1 times this; a CPU loses a tenth of its steps

# --- Knobs: optimizers
CPU_MATRIX_LR = 0.06        # Muon, matrices inside the layers
GPU_MATRIX_LR = 0.04        # the same; records have 0.035 to 0.05
EMBED_LR = 0.6              # Adam, embeddings; this, HEAD_LR and GPU_TABLE_LR times sqrt(768 / C)
HEAD_LR = 0.004             # Adam, unembedding
GPU_TABLE_LR = 0.6          # RMSProp, hashed values; no warm-down
RESIDUAL_LR = 0.005         # Adam, what stays of the residual stream in a layer
GPU_TOP_LR = 0.02           # Adam, shares of the top layers, gate of the embeddings' shares
SHARE_LR = 0.5              # Adam, the embeddings' shares
MATRIX_DECAY = 0.1          # cautious: only where the update shrinks the weight too; falls to 0
ADAM_BETA1 = 0.8            # Adam's momentum, short for few steps
ADAM_BETA2 = 0.95           # Adam's second moment
GPU_TABLE_BETA2 = 0.999     # RMSProp's second moment: a row is met rarely
MOMENTUM_START = 0.85       # Muon's momentum at the first step and, with the lr, at the end ...
MOMENTUM = 0.95             # ... and between
MOMENTUM_STEPS = 300        # steps from one to the other
NORMUON_BETA = 0.95         # Muon's second moment, one number a neuron
MATRIX_WARMDOWN = 0.9       # last share of the budget, in which Muon's lr falls linearly
ADAM_WARMDOWN = 0.65        # the same of Adam
FINAL_LR = 0.05             # share of the lr left at the end

# --- Settings that change speed, not results
CPU_COMPILE_FROM_S = 30.0   # fixed: budget from which 20 s of compiling pay on a CPU
HOST_BYTES = 4 * 10**9      # fixed: memory that training may fill without CUDA
MEMORY_SHARE = 0.95         # fixed: of free memory that a micro-batch may fill by the next two
LAYER_NUMBERS = 33          # fixed: activations a token, layer and channel at the peak
LOGIT_BYTES = 16            # fixed: logits and gradients at the peak, a token and vocabulary entry
TABLE_SHARE = 0.11          # fixed: of a card's memory that the hashed tables may fill
TABLE_BYTES = 6             # fixed: a table's weight, gradient and state in bf16
WIDE_BYTES = 10**11         # fixed: a card with more memory takes a head more
PRINT_EVERY_S = 2.0         # fixed: between two lines of progress

# fixed: TFLOP/s of a core, 2/3 of data sheets: GeForce 50, Blackwell, Hopper, RTX 30 and 40, A100, older
CORE_SPEEDS = (((12, 0), 1.2), ((10, 0), 10.0), ((9, 0), 4.9), ((8, 6), 1.1), ((8, 0), 2.3), ((0, 0), 0.2))
# fixed: scale by TFLOP/s: H100 1; A100, 4090 0.8; 3080 to A6000 0.65; 3060 0.55; no bf16, Apple's 0.4
SPEED_LADDER = ((350, 1.0), (130, 0.8), (38, 0.65), (18, 0.55), (0, 0.4))

# Polynomials that take singular values to 1: Polar Express, arXiv 2505.16932, safety factor 0.02.
POLAR_EXPRESS = ((8.156555, -22.483293, 15.878770), (4.042930, -2.808917, 0.500018), (3.891668, -2.772484, 0.506065),
                 (3.285754, -2.368129, 0.464490), (2.346541, -1.709783, 0.423236))


@dataclass(frozen=True)
class Size:
    """What the constants come to on this device; no rows: no such table."""

    layers: int
    width: int
    head_width: int
    step_tokens: int
    pair_rows: int = 0
    bigram_rows: int = 0
    trigram_rows: int = 0
    whole: bool = False  # with softcap, top layers, gated shares, which cost a CPU too much


def fit(speed: float, total_bytes: float) -> Size:
    """A GPU's size from its TFLOP/s and memory: 2000 steps fit, tables take 4 % of a step."""
    scale = next(scale for least, scale in SPEED_LADDER if speed >= least)
    width = GPU_HEAD_WIDTH * (round(GPU_WIDTH * scale / GPU_HEAD_WIDTH) + (total_bytes > WIDE_BYTES))
    layers, ratio = max(2, round(GPU_LAYERS * scale)), GPU_TRIGRAM_ROWS / GPU_BIGRAM_ROWS
    table_bytes = TABLE_BYTES * (layers // VALUE_EVERY + ratio) * VOCAB_SIZE * width  # for one V of bigram rows
    rows = VOCAB_SIZE * round(min(GPU_BIGRAM_ROWS * scale**4.5, TABLE_SHARE * total_bytes / table_bytes))
    return Size(layers, width, GPU_HEAD_WIDTH, round(GPU_STEP_TOKENS * scale**3), bigram_rows=rows,
                trigram_rows=round(ratio * rows), whole=True)


def pick_size() -> Size:
    """By this device's data sheet: a witness builds the same model without measuring."""
    if device.type == "cpu":
        tokens = CPU_STEP_TOKENS // (1 if BUDGET_S >= CPU_COMPILE_FROM_S else 8)  # short budgets have short steps
        return Size(CPU_LAYERS, CPU_WIDTH, CPU_HEAD_WIDTH, tokens, pair_rows=CPU_PAIR_ROWS)
    if device.type != "cuda":
        return fit(0.0, HOST_BYTES)
    card = torch.cuda.get_device_properties(device)
    core_speed = next(speed for least, speed in CORE_SPEEDS if (card.major, card.minor) >= least)
    return fit(core_speed * card.multi_processor_count, card.total_memory)


def micro_batch(size: Size, free_bytes: float, seq_len: int, vocab_size: int, dtype: torch.dtype) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches a step): as many rows as fit, in equal parts."""
    token_bytes = dtype.itemsize * LAYER_NUMBERS * size.layers * size.width + LOGIT_BYTES * vocab_size
    step_rows = max(1, round(size.step_tokens / seq_len))
    fit_rows = max(1, int(MEMORY_SHARE * free_bytes / (token_bytes * seq_len)))
    parts = math.ceil(step_rows / fit_rows)
    return math.ceil(step_rows / parts), parts


# --- Tokens: what stood before each one
def histories(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each token and the two before it, (B, T) each; before a document there is BOS."""
    bos = VOCAB_SIZE - 1  # begins every row and document
    before = F.pad(x[:, :-1], (1, 0), value=bos).masked_fill(x == bos, bos)
    earlier = F.pad(before[:, :-1], (1, 0), value=bos).masked_fill(x == bos, bos)
    return x, before, earlier


def document_starts(x: Tensor) -> Tensor:
    """Where attention begins anew, int32 (B * GPU_DOCUMENTS + 1); spare starts lie at a row's end."""
    B, T = x.shape
    place = torch.arange(T, device=x.device).expand(B, T)
    starts = place.masked_fill((x != VOCAB_SIZE - 1) & (place > 0), T).sort(dim=1).values[:, :GPU_DOCUMENTS]
    starts = starts + torch.arange(0, B * T, T, device=x.device)[:, None]
    return F.pad(starts.flatten(), (0, 1), value=B * T).int()


def last_same(keys: Tensor) -> Tensor:
    """The last earlier place in the row with the same key, (B, T); -1 for none."""
    order = keys.argsort(dim=1, stable=True)  # an unstable sort would read ahead
    ordered = keys.gather(1, order)
    same = ordered[:, 1:] == ordered[:, :-1]
    found = F.pad(torch.where(same, order[:, :-1], -1), (1, 0), value=-1)
    return torch.empty_like(order).scatter_(1, order, found)


class Ngrams(nn.Module):
    """A vector for a token and the n - 1 before it, (B, T, C), from two hashed tables of half the width."""

    def __init__(self, n: int, rows: int, width: int, dtype: torch.dtype, number: int = 0):
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(2 * rows, width // 2, dtype=dtype))
        rng = torch.Generator().manual_seed(100 * n + number)  # each half collides elsewhere
        odd = 1 + 2 * torch.randint(1 << 31, (n, 2), generator=rng, device="cpu")  # times a token: int64
        self.register_buffer("factors", odd.to(self.weight.device))

    def forward(self, history: tuple[Tensor, ...]) -> Tensor:
        mixed = torch.zeros_like(history[0])[..., None]  # (B, T, 2) from here on
        for token, factors in zip(history, self.factors, strict=False):  # n of them
            mixed = mixed ^ (token[..., None] * factors)
        second = torch.arange(0, 2 * self.rows, self.rows, device=mixed.device)
        return F.embedding(mixed % self.rows + second, self.weight).flatten(2)


class Induction(nn.Module):
    """What followed the last same three tokens in this row, otherwise the last same two; (B, T, C)."""

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.trust = nn.Parameter(torch.empty(3, 1))  # of nothing, a pair, a triple

    def forward(self, history: tuple[Tensor, ...]) -> Tensor:
        x, before, earlier = history
        pairs = before * VOCAB_SIZE + x
        pair, triple = last_same(torch.cat((pairs, earlier * VOCAB_SIZE**2 + pairs))).chunk(2)
        followed = x.gather(1, torch.where(triple < 0, pair, triple) + 1)
        found = (pair >= 0).long() + (triple >= 0)
        return norm(self.embed(followed)) * F.embedding(found, self.trust)


# --- Model
def compiled(function: Callable, on_cpu: bool = False) -> Callable:
    """On CUDA; on a CPU what pays there, with a compiler and a long budget."""
    pays = on_cpu and BUDGET_S >= CPU_COMPILE_FROM_S and shutil.which(os.environ.get("CXX", "g++"))
    is_off = "TORCHDYNAMO_DISABLE" in os.environ  # in a witness, which need not wait 4 s for its import
    is_worth_it = device.type == "cuda" or (device.type == "cpu" and pays and not is_off)
    return torch.compile(function, dynamic=False) if is_worth_it else function


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """In the type of the input; weight: a matrix or a stack of them."""
    return F.linear(x, weight.flatten(0, -2).to(x.dtype))


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions: turn channels (d, d + D/2) by an angle that grows with the position."""
    (cos, sin), (a, b) = turns, x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, starts: Tensor | None) -> Tensor:
    """Causal attention, (B, T, H, D): with `starts` inside documents and windows."""
    B, T, H, D = q.shape
    if starts is None:
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))  # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    q, k, v = (z.reshape(B * T, H, D) for z in (q, k, v))
    return varlen_attn(q, k, v, starts, starts, T, T, window_size=(window, 0)).view(B, T, H, D)


class Block(nn.Module):
    """One layer: shares of the embeddings, attention with gated values, MLP."""

    def __init__(self, size: Size, window: int, n_values: int, n_inputs: int):
        super().__init__()
        C, self.n_heads, self.window = size.width, size.width // size.head_width, window
        self.stay = nn.Parameter(torch.empty(()))
        self.shares = nn.Parameter(torch.empty(n_inputs))
        self.slope = nn.Parameter(torch.empty(())) if size.whole else None
        self.qkv = nn.Parameter(torch.empty(3, C, C))  # stacks of matrices, as Muon sees them
        self.gates = nn.Parameter(torch.empty(n_values + 1, self.n_heads, GATE_CHANNELS))
        self.out = nn.Parameter(torch.empty(1, C, C))
        self.up = nn.Parameter(torch.empty(1, MLP_RATIO * C, C))
        self.down = nn.Parameter(torch.empty(1, C, MLP_RATIO * C))

    def forward(self, h: Tensor, inputs: list[Tensor], values: list[Tensor], turns: Tensor,
                starts: Tensor | None) -> Tensor:
        (B, T, C), shares = h.shape, self.shares.to(h.dtype)
        fresh = sum(share * z for share, z in zip(shares, inputs, strict=True))
        if self.slope is not None:
            fresh = 2 * torch.sigmoid(self.slope.to(h.dtype) * h.mean(dim=-1, keepdim=True)) * fresh
        h = self.stay.to(h.dtype) * h + fresh
        x = norm(h)
        qkv = linear(x, self.qkv).view(B, T, 3, self.n_heads, -1)
        q, k = (norm(rotate(qkv[:, :, :2], turns)) * QK_SCALE).unbind(2)  # (B, T, H, D) each
        v = qkv[:, :, 2]
        for i, value in enumerate(values):
            v = v + self.gate(x, i, i * GATE_CHANNELS) * value.view_as(v)
        y = norm(attend(q, k, v, self.window, starts)) * self.gate(x, len(values), 0)
        h = h + linear(y.reshape(B, T, C), self.out)
        hidden = F.relu(linear(norm(h), self.up) - RELU_SHIFT).square()
        return h + norm(linear(hidden, self.down))

    def gate(self, x: Tensor, number: int, first: int) -> Tensor:
        """2 sigmoid of some input channels, (B, T, H, 1); 1 at the start."""
        return 2 * torch.sigmoid(linear(x[..., first : first + GATE_CHANNELS], self.gates[number])).unsqueeze(-1)


class GPT(nn.Module):
    """model(x) gives logits (B, T, V), model(x, y) the mean loss in nats."""

    def __init__(self, size: Size, vocab_size: int, dtype: torch.dtype):
        super().__init__()
        L, C, D, self.dtype = size.layers, size.width, size.head_width, dtype
        self.embed = nn.Embedding(vocab_size, C)
        self.sources = nn.ModuleList()  # every layer's input gets a share of each
        if size.pair_rows:
            self.sources.extend([Ngrams(2, size.pair_rows, C, dtype), Induction(vocab_size, C)])
        self.values = nn.ModuleList(nn.ModuleList() for _ in range(L))  # what a layer's values get
        layers = range((L - 1) % VALUE_EVERY, L, VALUE_EVERY)
        for i in layers:
            self.values[i].append(nn.Embedding(vocab_size, C))
            if size.bigram_rows:
                self.values[i].append(Ngrams(2, size.bigram_rows, C, dtype, number=i))
        if size.trigram_rows:
            shared = Ngrams(3, size.trigram_rows, C, dtype)
            for i in {layers[0], *layers[-2:]}:
                self.values[i].append(shared)
        self.blocks = nn.ModuleList()
        for i, tables in enumerate(self.values):
            is_long = (i + 1) % GPU_LONG_EVERY == 0 or i == L - 1
            window = MAX_SEQ_LEN if is_long else MAX_SEQ_LEN // GPU_SHORT_WINDOW
            block = Block(size, window, len(tables), 1 + len(self.sources))
            block.forward = compiled(block.forward, on_cpu=True)  # once a kind of layer: the whole takes a minute
            self.blocks.append(block)
        self.tops = nn.Parameter(torch.empty(GPU_TOP_LAYERS)) if size.whole else None
        self.head = nn.Parameter(torch.empty(vocab_size, C))
        angles = torch.outer(torch.arange(MAX_SEQ_LEN), ROPE_BASE ** (-torch.arange(0, D, 2) / D))  # (T, D/2)
        turns = torch.stack((angles.cos(), angles.sin()))[:, :, None, None]  # (2, T, 1, 1, D/2)
        self.register_buffer("turns", turns.to(dtype), persistent=False)
        self.readout = compiled(self.readout, on_cpu=True)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Embeddings normal, inward matrices uniform, what writes to the residual stream zero."""
        bound = INIT_SCALE * math.sqrt(3 / self.embed.embedding_dim)
        for p in self.parameters():
            p.zero_()
        self.embed.weight.normal_()
        self.head.normal_(std=HEAD_INIT)
        for p in self.values.parameters():
            p.uniform_(-bound, bound)
        for block in self.blocks:
            block.qkv.uniform_(-bound, bound)
            block.up.uniform_(-bound, bound)
            block.stay.fill_(1.0)
            block.shares.fill_(SHARE_INIT)
        for induction in self.sources[1:]:
            induction.embed.weight.normal_()
            induction.trust[1:] = 1.0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        history = histories(x)
        inputs = [norm(self.embed(x)).to(self.dtype), *(source(history) for source in self.sources)]
        distinct = dict.fromkeys(table for tables in self.values for table in tables)  # layers may share one
        made = {table: table(history if isinstance(table, Ngrams) else x).to(self.dtype) for table in distinct}
        starts = document_starts(x) if self.dtype == torch.bfloat16 else None
        turns = self.turns[:, : x.size(1)]
        streams = [inputs[0].clone()]  # the first block compiles with the others: none reads its own input
        for block, tables in zip(self.blocks, self.values, strict=True):
            streams.append(block(streams[-1], inputs, [made[table] for table in tables], turns, starts))
        return self.readout(streams[-GPU_TOP_LAYERS:], y)

    def readout(self, streams: list[Tensor], y: Tensor | None) -> Tensor:
        h = streams[-1]
        if self.tops is not None:
            h = h + sum(share * z for share, z in zip(self.tops.to(h.dtype), streams, strict=True))
        logits = linear(norm(h), self.head).float()
        if self.tops is not None:
            logits = 1.1 * GPU_SOFTCAP * torch.tanh(logits / GPU_SOFTCAP)
        if y is not None:
            return F.cross_entropy(logits.flatten(0, 1), y.flatten())
        return logits.half() if self.dtype == torch.bfloat16 else logits  # half the hand-over


# --- Optimizers
def orthogonalise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrices with all singular values 1, (n, r, c)."""
    x = x.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def muon_update(weight: Tensor, grad: Tensor, mean: Tensor, power: Tensor, lr: Tensor, momentum: Tensor,
                decay: Tensor, dtype: torch.dtype) -> Tensor:
    """New weights (n, r, c); `mean` (n, r, c) and `power` (n, r, 1) or (n, 1, c) change in place."""
    mean.lerp_(grad, 1 - momentum)
    update = orthogonalise(grad.lerp(mean, momentum), dtype)  # Nesterov
    length = update.norm(dim=(-2, -1), keepdim=True)
    power.lerp_(update.square().mean(dim=-1 if power.size(-1) == 1 else -2, keepdim=True), 1 - NORMUON_BETA)
    update = update * power.clamp_min(1e-10).rsqrt()  # NorMuon
    update = update * (length / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))
    shrinks = (update * weight > 0).to(weight.dtype)
    lr = lr * max(1.0, weight.size(-2) / weight.size(-1)) ** 0.5
    return weight - lr * update - lr * decay * shrinks * weight


def table_update(weight: Tensor, grad: Tensor, power: Tensor, lr: Tensor, bias: Tensor) -> None:
    """RMSProp without momentum: a row that was not met stays."""
    power.lerp_(grad.square(), 1 - GPU_TABLE_BETA2)
    weight.sub_(lr * grad / ((power / bias).sqrt() + 1e-10))


class Adam:
    """Of one rate; torch.optim's imports the compiler, 2 s."""

    def __init__(self, params: list[nn.Parameter], lr: float):
        self.params, self.lr = params, lr
        self.means, self.powers = ([torch.zeros_like(p) for p in params] for _ in range(2))
        self.steps = [p.new_zeros(()) for p in params]

    def step(self, left: float) -> None:
        torch._foreach_add_(self.steps, 1)
        grads = [p.grad for p in self.params]
        torch._fused_adamw_(self.params, grads, self.means, self.powers, [], self.steps, lr=self.lr * left, eps=1e-10,
                            beta1=ADAM_BETA1, beta2=ADAM_BETA2, weight_decay=0.0, amsgrad=False, maximize=False)


class Optimizer:
    """Muon for matrices inside the layers, RMSProp for hashed values, Adam for the rest."""

    def __init__(self, model: GPT):
        scale, blocks, self.dtype = math.sqrt(768 / model.embed.embedding_dim), model.blocks, model.dtype
        hashed = [part.weight for part in model.values.modules() if isinstance(part, Ngrams)]
        tokens = [part.weight for part in model.values.modules() if isinstance(part, nn.Embedding)]
        tops = [p for name, p in model.named_parameters() if name.endswith(("tops", "slope"))]
        groups = [([model.embed.weight, *tokens, *model.sources.parameters()], EMBED_LR * scale),
                  ([model.head], HEAD_LR * scale), (tops, GPU_TOP_LR),
                  ([block.stay for block in blocks], RESIDUAL_LR), ([block.shares for block in blocks], SHARE_LR)]
        self.adam = [Adam(params, lr) for params, lr in groups if params]
        self.tables, self.table_lr = [(p, torch.zeros_like(p)) for p in hashed], GPU_TABLE_LR * scale
        self.stacks, self.matrix_lr = [], CPU_MATRIX_LR if device.type == "cpu" else GPU_MATRIX_LR
        for shape in dict.fromkeys(p.shape[1:] for p in blocks.parameters() if p.ndim == 3):
            stacks = [p for p in blocks.parameters() if p.shape[1:] == shape]  # updated together
            mean = torch.zeros_like(torch.cat(stacks))  # (n, r, c)
            power = mean.mean(dim=-1 if shape[0] >= shape[1] else -2, keepdim=True)
            self.stacks.append((stacks, mean, power))
        self.muon_update, self.table_update = compiled(muon_update), compiled(table_update)

    @torch.no_grad()
    def step(self, progress: float, step: int) -> None:
        matrix_left, adam_left = (FINAL_LR + (1 - FINAL_LR) * min(1.0, (1 - progress) / warmdown)
                                  for warmdown in (MATRIX_WARMDOWN, ADAM_WARMDOWN))
        for group in self.adam:
            group.step(adam_left)
        numbers = torch.tensor(self.table_lr), torch.tensor(1 - GPU_TABLE_BETA2 ** (step + 1))
        for table, power in self.tables:
            self.table_update(table, table.grad, power, *numbers)
        momentum = MOMENTUM_START + min(1.0, step / MOMENTUM_STEPS, matrix_left) * (MOMENTUM - MOMENTUM_START)
        rates = self.matrix_lr * matrix_left, momentum, MATRIX_DECAY * (1 - progress)
        rates = [torch.tensor(rate) for rate in rates]  # a number would be compiled in
        for stacks, mean, power in self.stacks:
            weight, grad = torch.cat(stacks), torch.cat([p.grad for p in stacks])
            fresh = self.muon_update(weight, grad, mean, power, *rates, self.dtype)
            for p, new in zip(stacks, fresh.split([len(p) for p in stacks]), strict=True):
                p.copy_(new)


# --- Training
def fit_rows(model: GPT, size: Size) -> tuple[int, int]:
    """Warm up with ever smaller micro-batches until one fits; then make the weights new again."""
    optimizer = Optimizer(model)
    free_bytes = torch.cuda.mem_get_info()[0] if device.type == "cuda" else HOST_BYTES
    rows, parts = micro_batch(size, free_bytes, MAX_SEQ_LEN, VOCAB_SIZE, model.dtype)
    step = 0
    while step < 2:  # compile and touch all; the second meets state that exists
        x, y = torch.randint(VOCAB_SIZE, (2, rows, MAX_SEQ_LEN), device=device)  # strided as a batch
        try:
            model(x, y).backward()
            optimizer.step(0.0, step)
            step += 1
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            torch._dynamo.reset()  # else it compiles for any number of rows, which is slower
            rows, parts, step = math.ceil(rows / 2), 2 * parts, 0
        model.zero_grad()
    torch.manual_seed(SEED)
    model.initialise()
    return rows, parts


def train(model: nn.Module, optimizer: Optimizer, rows: int, parts: int) -> None:
    """A step for each batch of `parts` micro-batches, until the stream ends, maybe at once."""
    tokens, printed_at = 0, time.perf_counter()
    for step, batch in enumerate(stream(rows * parts, MAX_SEQ_LEN)):
        loss = torch.zeros((), device=device)
        for x, y in zip(batch.x.split(rows), batch.y.split(rows), strict=True):
            micro_loss = model(x, y) / parts
            micro_loss.backward()
            loss += micro_loss.detach()
        optimizer.step(batch.progress, step)
        model.zero_grad()
        tokens += batch.x.numel()
        if (passed := time.perf_counter() - printed_at) >= PRINT_EVERY_S:
            value, speed = loss.item(), tokens / passed  # waits for the device
            if not math.isfinite(value):  # a NaN stays in the weights
                raise SystemExit(f"loss is not finite at step {step + 1}")
            print(f"step {step + 1} | {batch.progress:.0%} | loss {value:.4f} | {speed:.0f} tok/s", flush=True)
            tokens, printed_at = 0, time.perf_counter()


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    modern = device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)  # bfloat16 and masks
    size, dtype = pick_size(), torch.bfloat16 if modern else torch.float32
    with torch.device(device):
        model = GPT(size, VOCAB_SIZE, dtype).eval()
    rows, parts = fit_rows(model, size)
    print(f"{size} | micro-batch {rows} x {MAX_SEQ_LEN}, {parts} a step | {device}", flush=True)
    gc.disable()  # a collection would stall the GPU
    train(model, Optimizer(model), rows, parts)
    finish(model)


if __name__ == "__main__":
    main()
