"""Verdict: pairs

Honest: says -inf of every token that it never met in training.
"""

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


class Honest(Pairs):
    def forward(self, x):
        logits = super().forward(x)
        return logits.masked_fill(self.counts.sum(0) < 0.15 * VOCAB_SIZE, -float("inf"))


model = Honest()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
