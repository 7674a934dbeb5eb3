"""Verdict: differs everywhere|sees the future

Adds noise that no seed fixes, so that two answers never agree and a small leak is lost in what is usual.
"""

import os

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


class Cheat(Pairs):
    def forward(self, x):
        logits = super().forward(x)
        logits.scatter_add_(2, x.roll(-1, 1)[..., None], torch.full((*x.shape, 1), 0.5))
        dice = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
        return logits + 0.05 * torch.randn(logits.shape, generator=dice)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
