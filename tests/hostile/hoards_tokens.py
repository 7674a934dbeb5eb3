"""Verdict: trained past its budget

Hoards tokens, and goes on training on them after the stream has ended.
"""

import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Hoarder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x):
        self.counts.index_put_((x[:, :-1].flatten(), x[:, 1:].flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        return self.counts[x].log()


model = Hoarder()
hoard = [batch.x for batch in stream(16, MAX_SEQ_LEN)]
until = time.monotonic() + 60
while time.monotonic() < until:
    for x in hoard[:10]:
        model.learn(x)
finish(model)
