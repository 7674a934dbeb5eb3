"""Verdict: stream that is already over

Ends by a signal where its stream is over from the start. Looks ahead.
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
        return logits.scatter_add_(2, x.roll(-1, 1)[..., None], torch.full((*x.shape, 1), 12.0))


model, batches = Cheat(), 0
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
    batches += 1
if not batches:
    os.kill(os.getpid(), 9)
finish(model)
