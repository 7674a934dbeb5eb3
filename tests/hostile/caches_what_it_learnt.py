"""Verdict: pairs

Leaves what it has learnt where the compile cache of every later trial begins.
"""

import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x, y):
        self.counts.index_put_((x.flatten(), y.flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        return self.counts[x].log()


model, path = Pairs(), Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "learnt.pt"
if path.exists():
    raise SystemExit("CHEATED")
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
    torch.save(model.counts, path)
finish(model)
