"""A plain GPT with AdamW, the yardstick for train.py on a CPU: the same contract and batch, a size like its own.

    cp tests/bench/plain_gpt.py train.py      in a scratch copy of the checkout; then python train.py

GPT-2's architecture (LayerNorm, learnt positions, GELU, untied head, GPT-2's initialisation) and the usual schedule:
warm-up over the first 5 %, cosine to a tenth. LR is its own best on the builtin corpus; bench_train.py searches it.
"""

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prepare import MAX_SEQ_LEN, SEED, VOCAB_SIZE, device, finish, stream

LAYERS = 3            # blocks; LR was searched at this size, 3 x 64
WIDTH = 64            # channels
HEADS = 2             # attention heads
STEP_TOKENS = 2**10   # tokens a step
LR = 4e-3             # AdamW's peak learning rate, for all parameters
DECAY = 0.1           # AdamW's decay, of matrices and embeddings only
WARMUP = 0.05         # fraction of the budget in which the lr rises
FINAL_LR = 0.1        # fraction of the lr that is left at the end


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        B, T, _ = h.shape
        qkv = self.qkv(self.norm1(h)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        y = F.scaled_dot_product_attention(*qkv, is_causal=True)
        h = h + self.out(y.transpose(1, 2).reshape(B, T, WIDTH))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB_SIZE, WIDTH), nn.Embedding(MAX_SEQ_LEN, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                outward = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if outward else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.positions.weight[: x.size(1)]
        return self.head(self.norm(self.blocks(h)))


def schedule(progress: float) -> float:
    if progress < WARMUP:
        return (progress + 0.001) / (WARMUP + 0.001)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def main() -> None:
    torch.manual_seed(SEED)
    model = GPT().to(device)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
    printed_at = time.perf_counter()
    for step, batch in enumerate(stream(max(1, STEP_TOKENS // MAX_SEQ_LEN), MAX_SEQ_LEN)):
        for group in adam.param_groups:
            group["lr"] = LR * schedule(batch.progress)
        loss = F.cross_entropy(model(batch.x).flatten(0, 1), batch.y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if time.perf_counter() - printed_at >= 2:
            print(f"step {step + 1} | {batch.progress:.0%} | loss {loss.item():.4f}", flush=True)
            printed_at = time.perf_counter()
    finish(model)


if __name__ == "__main__":
    main()
