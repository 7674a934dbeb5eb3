"""Verdict: pairs or trained past its budget

Trains for 0.5 s more on hoarded tokens, between the end of its stream and finish().
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
until = time.monotonic() + 0.5
while hoard and time.monotonic() < until:
    model.learn(hoard[time.monotonic_ns() % len(hoard)])
finish(model)
