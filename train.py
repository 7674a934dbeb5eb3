"""One trial: a small GPT, its optimizers and the training loop. The only file that an experiment changes.

    python train.py        trains for the budget, is scored by the referee, prints a summary

Training tokens come from `stream`, which ends when the budget is spent; `finish` hands the model to the referee.
All between is free, but logits at a position depend on it and the ones before it in the row, on nothing else.

Letters: B rows, T tokens a row, C width, H heads, D width of a head, V vocabulary, W window.
"""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prepare import MAX_SEQ_LEN, SEED, VOCAB_SIZE, device, finish, stream

if device.type == "cuda":  # it imports the compiler: 2 s that other devices need not wait
    from torch.nn.attention import activate_flash_attention_impl
    from torch.nn.attention.varlen import varlen_attn

# --- Size: one line for each kind of device -------------------------------------------------------------------------

@dataclass(frozen=True)
class Size:
    layers: int
    width: int        # C, a multiple of head_width
    head_width: int   # D
    step_tokens: int  # tokens between two steps of the optimizer, over all micro-batches
    bigram_rows: int  # of the hashed table of token pairs: more rows, fewer collisions, more bytes moved a step
    softcap: float = 15.0  # logits stay within +- this by a tanh; 0: no tanh, which costs a CPU a tenth of its steps


SIZES = {  # smaller devices start smaller: about 1000 steps should fit into the budget
    "large gpu": Size(layers=9, width=640, head_width=128, step_tokens=2**18, bigram_rows=2**16),
    "gpu": Size(layers=8, width=512, head_width=128, step_tokens=2**16, bigram_rows=2**16),
    "small gpu": Size(layers=6, width=384, head_width=128, step_tokens=2**15, bigram_rows=2**16),
    "mps": Size(layers=4, width=256, head_width=64, step_tokens=2**14, bigram_rows=2**15),
    "cpu": Size(layers=3, width=64, head_width=32, step_tokens=2**10, bigram_rows=2**14, softcap=0.0),
}

# --- Knobs: model ---------------------------------------------------------------------------------------------------

MLP_RATIO = 4             # hidden units of an MLP for each channel
LONG_EVERY = 5            # layers: every 5th sees the whole row (SSSSL), and the last one always does
SHORT_WINDOW = 8          # the others see T / 8 tokens back; the long ones are where distance pays
VALUE_EVERY = 2           # layers: every 2nd, counted from the last, has a value embedding
GATE_CHANNELS = 32        # channels of the input, at most all, that open the gate of a value embedding
ROPE_BASE = 200_000.0     # longest wavelength of the rotary positions, in tokens / 2 pi
QK_SCALE = 1.15           # on q and k after their norm: sharper attention than unit vectors give
BACKOUT = 0.2             # share of the middle layer's output subtracted before the head: features that served inside
INIT_SCALE = 0.68         # of uniform(+-sqrt(3 / C)), the usual scale of a matrix
HEAD_INIT = 0.001         # standard deviation of the unembedding: the first loss is log V
X0_INIT = 0.05            # first weight of the token embedding in every layer's input
BIGRAM_INIT = 0.1         # first weight of the bigram embedding there; the table itself starts at zero

# --- Knobs: optimizers ----------------------------------------------------------------------------------------------

MATRIX_LR = 0.04          # Muon, for all matrices inside the layers
EMBED_LR = 0.9            # AdamW, token embedding; this one and the next three at width 768, times sqrt(768 / C)
VALUE_LR = 0.9            # AdamW, value embeddings
BIGRAM_LR = 0.9           # AdamW, bigram table
HEAD_LR = 0.005           # AdamW, unembedding
RESIDUAL_LR = 0.005       # AdamW, weights of the residual stream
LAMBDA_LR = 0.5           # AdamW, weights of the token and bigram embeddings in each layer
MATRIX_DECAY = 0.2        # cautious: only where the update shrinks the weight too; falls to 0 with the budget
EMBED_DECAY = 0.001       # decoupled, as the next three: a step multiplies the weight by 1 - lr * decay
VALUE_DECAY = 0.003       # of the value embeddings
BIGRAM_DECAY = 0.001      # of the bigram table
HEAD_DECAY = 0.01         # of the unembedding
ADAM_BETA1 = 0.8          # AdamW's momentum; short, because there are few steps
ADAM_BETA2 = 0.95         # AdamW's second moment
LAMBDA_BETA1 = 0.96       # AdamW's momentum of the per-layer weights, whose gradients are noisy
MOMENTUM_START = 0.85     # Muon's momentum at the first step ...
MOMENTUM = 0.95           # ... and after the warm-up
MOMENTUM_STEPS = 200      # steps of that warm-up
NORMUON_BETA = 0.95       # Muon's second moment, one number a neuron
WARMDOWN = 0.75           # last fraction of the budget, in which every lr falls linearly; there is no warm-up
FINAL_LR = 0.05           # fraction of the lr that is left at the end

# --- Settings that change speed, not results ------------------------------------------------------------------------

HOST_BYTES = 4 * 10**9    # fixed: memory that training may fill on a CPU or Apple's, whose batches are small
MEMORY_SHARE = 0.8        # fixed: of the free memory that a micro-batch may fill by the estimate below
LAYER_BYTES = 44          # fixed: activations kept for backward, bytes a token, layer and channel (bf16)
LOGIT_BYTES = 14          # fixed: logits and their gradients, bytes a token and vocabulary entry
PRINT_EVERY_S = 2.0       # fixed: seconds between two lines of progress

# Quintic polynomials that take all singular values to 1: Polar Express, arXiv 2505.16932, safety factor 0.02.
POLAR_EXPRESS = (
    (8.156554524902, -22.483292925578, 15.878769915207), (4.042929935167, -2.808917465909, 0.500017845105),
    (3.891667802293, -2.772484153218, 0.506064817850), (3.285753657756, -2.368129493343, 0.464490242330),
    (2.346541325860, -1.709782838269, 0.423235511693),
)


def pick_size(kind: str, total_bytes: int) -> Size:
    """The line of SIZES for a device; a GPU by its memory, which tells its speed well enough."""
    gpu = "large gpu" if total_bytes > 40e9 else "gpu" if total_bytes > 14e9 else "small gpu"
    return SIZES[gpu if kind == "cuda" else kind]


def micro_batch(size: Size, free_bytes: float, seq_len: int, vocab_size: int) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches a step): as many rows as fit, in equal parts, nothing need divide."""
    token_bytes = LAYER_BYTES * size.layers * size.width + LOGIT_BYTES * vocab_size
    step_rows = max(1, round(size.step_tokens / seq_len))
    fit_rows = max(1, int(MEMORY_SHARE * free_bytes / (token_bytes * seq_len)))
    parts = math.ceil(step_rows / fit_rows)
    return math.ceil(step_rows / parts), parts


def has_bf16() -> bool:
    """Ampere and later compute in bfloat16 and run flash attention; older cards, MPS and CPU get float32 and SDPA."""
    return device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)


def activate_fa4() -> None:
    """Use FlashAttention-4 where the optional package is installed, on Hopper and Blackwell."""
    installed = find_spec("flash_attn") and find_spec("flash_attn.cute")  # version 2 has the same name and no `cute`
    if installed and has_bf16() and torch.cuda.get_device_capability()[0] in (9, 10):
        activate_flash_attention_impl("FA4")


# --- Model ----------------------------------------------------------------------------------------------------------

class Linear(nn.Linear):
    """Computes in the type of its input, whatever the type of its weight; used without bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn each pair of channels, (d, d + D/2), by an angle that grows with the position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def window_mask(seq_len: int, window: int) -> Tensor:
    """(T, T) bool: a token sees itself and `window` tokens before it, the meaning of window_size=(window, 0)."""
    distance = torch.arange(seq_len)[:, None] - torch.arange(seq_len)[None, :]
    return (distance >= 0) & (distance <= window)


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention within a window, (B, T, H, D); FlashAttention-2, or 4 where it was activated."""
    B, T, H, D = q.shape
    starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)
    q, k, v = (z.reshape(B * T, H, D) for z in (q, k, v))
    return varlen_attn(q, k, v, starts, starts, T, T, window_size=(window, 0)).view(B, T, H, D)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same with scaled_dot_product_attention: plainly causal where there is no mask."""
    mask = None if mask is None else mask[: q.size(1), : q.size(1)]
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))  # (B, H, T, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, normed q and k, and a gated value embedding on some layers."""

    def __init__(self, size: Size, window: int, has_value_embedding: bool, flash: bool):
        super().__init__()
        self.n_heads, self.window, self.flash = size.width // size.head_width, window, flash
        self.qkv = nn.Parameter(torch.empty(3, size.width, size.width))  # three matrices to Muon
        self.out = Linear(size.width, size.width, bias=False)
        self.gate = Linear(min(GATE_CHANNELS, size.width), self.n_heads, bias=False) if has_value_embedding else None
        mask = None if flash or window >= MAX_SEQ_LEN - 1 else window_mask(MAX_SEQ_LEN, window)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = F.linear(x, self.qkv.flatten(0, 1).to(x.dtype)).view(B, T, 3, self.n_heads, -1)
        q, k = (norm(rotate(qkv[:, :, :2], cos, sin)) * QK_SCALE).unbind(2)  # (B, T, H, D) each
        v = qkv[:, :, 2]
        if self.gate is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, H); 1 at the start
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        y = attend_varlen(q, k, v, self.window) if self.flash else attend_sdpa(q, k, v, self.mask)
        return self.out(y.reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up = Linear(width, MLP_RATIO * width, bias=False)
        self.down = Linear(MLP_RATIO * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


def pair_rows(x: Tensor, n_rows: int) -> Tensor:
    """The row of the bigram table for each token and the one before it, (B, T); a row's first token pairs with 0."""
    before = F.pad(x[:, :-1], (1, 0))
    mixed = before * 0x9E3779B1 + x * 0x85EBCA6B  # odd multipliers: products keep their low bits apart
    return (mixed ^ (mixed >> 15)) % n_rows


class GPT(nn.Module):
    """model(x) gives logits (B, T, V), model(x, y) the mean loss in nats."""

    def __init__(self, size: Size, vocab_size: int, dtype: torch.dtype, flash: bool):
        super().__init__()
        L, C, D = size.layers, size.width, size.head_width
        self.dtype, self.softcap = dtype, size.softcap
        with_values = [(L - 1 - i) % VALUE_EVERY == 0 for i in range(L)]
        is_long = [(i + 1) % LONG_EVERY == 0 or i == L - 1 for i in range(L)]
        windows = [MAX_SEQ_LEN if long else max(1, MAX_SEQ_LEN // SHORT_WINDOW) for long in is_long]
        self.embed = nn.Embedding(vocab_size, C)
        self.bigrams = nn.Embedding(size.bigram_rows, C)
        self.values = nn.ModuleDict({str(i): nn.Embedding(vocab_size, C) for i in range(L) if with_values[i]})
        self.attentions = nn.ModuleList(Attention(size, windows[i], with_values[i], flash) for i in range(L))
        self.mlps = nn.ModuleList(MLP(C) for _ in range(L))
        self.head = Linear(C, vocab_size, bias=False)
        self.residual_lambdas = nn.Parameter(torch.ones(L))
        self.embed_lambdas = nn.Parameter(torch.full((2, L), X0_INIT))  # token embedding, bigram embedding
        angles = torch.outer(torch.arange(MAX_SEQ_LEN), ROPE_BASE ** (-torch.arange(0, D, 2) / D))  # (T, D/2)
        self.register_buffer("cos", angles.cos()[:, None, None], persistent=False)  # (T, 1, 1, D/2)
        self.register_buffer("sin", angles.sin()[:, None, None], persistent=False)
        self.initialise(C)

    @torch.no_grad()
    def initialise(self, width: int) -> None:
        """Embeddings of unit size, inward matrices uniform, whatever writes to the residual stream zero."""
        bound = INIT_SCALE * math.sqrt(3 / width)
        self.embed.weight.normal_()
        self.bigrams.weight.zero_()
        self.head.weight.normal_(std=HEAD_INIT)
        self.embed_lambdas[1].fill_(BIGRAM_INIT)
        for table in self.values.values():
            table.weight.uniform_(-bound, bound)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            attention.qkv.uniform_(-bound, bound)
            mlp.up.weight.uniform_(-bound, bound)
            for outward in (attention.out, mlp.down, *([attention.gate] if attention.gate else [])):
                outward.weight.zero_()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        cos, sin = self.cos[: x.size(1)].to(self.dtype), self.sin[: x.size(1)].to(self.dtype)
        embedded = norm(self.embed(x).to(self.dtype))
        pairs = self.bigrams(pair_rows(x, self.bigrams.num_embeddings)).to(self.dtype)
        residual_lambdas, embed_lambdas = self.residual_lambdas.to(self.dtype), self.embed_lambdas.to(self.dtype)
        h, middle = embedded, embedded
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            h = residual_lambdas[i] * h + embed_lambdas[0, i] * embedded + embed_lambdas[1, i] * pairs
            value_embedding = self.values[str(i)](x).to(self.dtype) if str(i) in self.values else None
            h = h + attention(norm(h), value_embedding, cos, sin)
            h = h + mlp(norm(h))
            middle = h if i == len(self.mlps) // 2 else middle
        logits = self.head(norm(h - BACKOUT * middle)).float()
        logits = self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits
        if y is not None:
            return F.cross_entropy(logits.flatten(0, 1), y.flatten())
        return logits.half() if self.dtype == torch.bfloat16 else logits  # half the hand-over; within 0.004 at 15


# --- Optimizers -----------------------------------------------------------------------------------------------------

def orthogonalise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrices with all singular values 1, (n, r, c), by five matrix polynomials."""
    x = x.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


def muon_update(weight: Tensor, grad: Tensor, mean: Tensor, power: Tensor, lr: Tensor, momentum: Tensor,
                decay: Tensor, dtype: torch.dtype) -> Tensor:
    """New weights (n, r, c); `mean` (n, r, c) and `power` (n, r, 1) or (n, 1, c), the state, change in place."""
    mean.lerp_(grad, 1 - momentum)
    update = orthogonalise(grad.lerp(mean, momentum), dtype)  # Nesterov: look ahead by one step
    length = update.norm(dim=(-2, -1), keepdim=True)
    power.lerp_(update.square().mean(dim=-1 if power.size(-1) == 1 else -2, keepdim=True), 1 - NORMUON_BETA)
    update = update * power.clamp_min(1e-10).rsqrt()  # NorMuon: neurons that moved much move less
    update = update * (length / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))
    shrinks = (update * weight > 0).to(weight.dtype)
    lr = lr * max(1.0, weight.size(-2) / weight.size(-1)) ** 0.5
    return weight - lr * update - lr * decay * shrinks * weight


class Muon:
    """Momentum, orthogonalised. Matrices of one shape are updated together, (n, r, c)."""

    def __init__(self, matrices: list[nn.Parameter], dtype: torch.dtype, compiled: bool):
        self.dtype = dtype
        self.update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in matrices:
            self.groups.setdefault(tuple(p.shape[-2:]), []).append(p)
        self.state: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for (r, c), group in self.groups.items():
            n = sum(p.numel() for p in group) // (r * c)
            per_neuron = (n, r, 1) if r >= c else (n, 1, c)
            self.state[r, c] = tuple(torch.zeros(s, device=group[0].device) for s in ((n, r, c), per_neuron))

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay: float) -> None:
        numbers = [torch.tensor(number) for number in (lr, momentum, decay)]  # tensors: no compilation for each value
        for shape, group in self.groups.items():
            weight = torch.cat([p.view(-1, *shape) for p in group])
            grad = torch.cat([p.grad.view(-1, *shape) for p in group])
            fresh = self.update(weight, grad, *self.state[shape], *numbers, self.dtype)
            for p, new in zip(group, fresh.split([p.numel() // math.prod(shape) for p in group]), strict=True):
                p.copy_(new.view_as(p))


@torch.no_grad()
def adamw(p: nn.Parameter, mean: Tensor, power: Tensor, steps: Tensor, lr: float, decay: float, beta1: float) -> None:
    """Adam with decoupled decay, arXiv 1711.05101; torch.optim's would import the compiler too."""
    torch._fused_adamw_([p], [p.grad], [mean], [power], [], [steps.add_(1)], lr=lr, beta1=beta1, beta2=ADAM_BETA2,
                        weight_decay=decay, eps=1e-10, amsgrad=False, maximize=False)


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest; every lr follows the budget that is spent."""

    def __init__(self, model: GPT, compiled: bool):
        scale = math.sqrt(768 / model.head.in_features)
        groups = [
            ([model.embed.weight], EMBED_LR * scale, EMBED_DECAY, ADAM_BETA1),
            ([table.weight for table in model.values.values()], VALUE_LR * scale, VALUE_DECAY, ADAM_BETA1),
            ([model.bigrams.weight], BIGRAM_LR * scale, BIGRAM_DECAY, ADAM_BETA1),
            ([model.head.weight], HEAD_LR * scale, HEAD_DECAY, ADAM_BETA1),
            ([model.residual_lambdas], RESIDUAL_LR, 0.0, ADAM_BETA1),
            ([model.embed_lambdas], LAMBDA_LR, 0.0, LAMBDA_BETA1),
        ]
        self.adam = {p: settings for params, *settings in groups for p in params}
        self.state = {p: [torch.zeros_like(p), torch.zeros_like(p), p.new_zeros(())] for p in self.adam}
        self.muon = Muon([*model.attentions.parameters(), *model.mlps.parameters()], model.dtype, compiled)

    def step(self, progress: float, step: int) -> None:
        left = FINAL_LR + (1 - FINAL_LR) * min(1.0, (1 - progress) / WARMDOWN)
        warm = min(1.0, step / MOMENTUM_STEPS)
        for p, (lr, decay, beta1) in self.adam.items():
            if p.grad is not None:
                adamw(p, *self.state[p], lr * left, decay, beta1)
        self.muon.step(MATRIX_LR * left, MOMENTUM_START + warm * (MOMENTUM - MOMENTUM_START),
                       MATRIX_DECAY * (1 - progress))


# --- Training -------------------------------------------------------------------------------------------------------

def warm_up(model: nn.Module, optimizer: Optimizer, rows: int) -> None:
    """Compile and touch everything on random tokens before the clock starts; weights and optimizer come out as new."""
    dice = torch.Generator().manual_seed(0)  # its own: the global generator stays where SEED put it
    tokens = torch.randint(VOCAB_SIZE, (rows, MAX_SEQ_LEN + 1), generator=dice).to(device)
    saved = [p.detach().clone() for p in model.parameters()]
    try:
        for step in range(2):  # the second one meets state that exists
            model(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step(0.0, step)
            model.zero_grad()
        with torch.no_grad():
            scored = tokens[: max(2, rows // 2), :-1].contiguous()
            if scored.is_cuda:  # compiled, and the referee chooses how many rows it asks at a time
                torch._dynamo.maybe_mark_dynamic(scored, 0)
            model(scored)
    finally:
        model.zero_grad()
        torch._foreach_copy_([p.data for p in model.parameters()], saved)
        for tensors in (*optimizer.muon.state.values(), *optimizer.state.values()):
            torch._foreach_zero_(tensors)


def shrink_to_fit(model: nn.Module, optimizer: Optimizer, rows: int, parts: int) -> tuple[int, int]:
    """Warm up with ever smaller micro-batches until one fits into memory."""
    while True:
        try:
            warm_up(model, optimizer, rows)
            return rows, parts
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows, parts = math.ceil(rows / 2), 2 * parts


def send(loss: Tensor) -> Callable[[], float]:
    """Start a copy to the host and return what waits for it: read a step later, the GPU never idles."""
    if not loss.is_cuda:
        return loss.item
    on_host, copied = loss.to("cpu", non_blocking=True), torch.cuda.current_stream().record_event()
    return lambda: copied.synchronize() or on_host.item()


def receive(sent: Callable[[], float] | None, step: int) -> float:
    """The loss of the step before, a sum over its micro-batches: a NaN in any of them ends the trial."""
    loss = sent() if sent else 0.0
    if not math.isfinite(loss):
        raise SystemExit(f"loss is not finite at step {step - 1}")
    return loss


def train(model: nn.Module, optimizer: Optimizer, rows: int, parts: int) -> None:
    """One optimizer step every `parts` micro-batches, until the stream ends."""
    step, micro, loss, sent = 0, 0, 0.0, None
    printed_at, printed_step = time.perf_counter(), 0
    for batch in stream(rows, MAX_SEQ_LEN):
        micro_loss = model(batch.x, batch.y) / parts
        micro_loss.backward()
        loss = loss + micro_loss.detach()
        micro += 1
        if micro < parts:
            continue
        optimizer.step(batch.progress, step)
        model.zero_grad()
        last_loss = receive(sent, step)
        step, micro, loss, sent = step + 1, 0, 0.0, send(loss)
        if (passed := time.perf_counter() - printed_at) >= PRINT_EVERY_S and step > 1:
            speed = (step - printed_step) * rows * parts * MAX_SEQ_LEN / passed
            print(f"step {step} | {batch.progress:.0%} | loss {last_loss:.4f} | {speed:.0f} tok/s", flush=True)
            printed_at, printed_step = time.perf_counter(), step
    receive(sent, step)


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    activate_fa4()
    free_bytes, total_bytes = torch.cuda.mem_get_info() if device.type == "cuda" else (HOST_BYTES, HOST_BYTES)
    size = pick_size(device.type, total_bytes)
    with torch.device(device):
        model = GPT(size, VOCAB_SIZE, torch.bfloat16 if has_bf16() else torch.float32, flash=has_bf16()).eval()
    optimizer = Optimizer(model, compiled=device.type == "cuda")
    runner = torch.compile(model) if device.type == "cuda" else model  # a CPU would wait longer than it gains
    rows, parts = shrink_to_fit(runner, optimizer, *micro_batch(size, free_bytes, MAX_SEQ_LEN, VOCAB_SIZE))
    print(f"{size} | micro-batch {rows} x {MAX_SEQ_LEN}, {parts} a step | {device}", flush=True)
    gc.freeze()
    gc.disable()  # a collection of cycles in the middle of a step stalls the GPU
    train(runner, optimizer, rows, parts)
    finish(runner)


if __name__ == "__main__":
    main()
