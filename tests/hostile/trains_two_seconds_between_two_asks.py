"""Verdict: slow to answer

Trains for two seconds at its thirtieth ask, when the asks before have shown how quick it is.
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
        self.asks = getattr(self, "asks", 0) + 1
        until = time.monotonic() + 2.0 * (self.asks == 30)
        while hoard and time.monotonic() < until:
            self.learn(hoard[self.asks])
        return self.counts[x].log()


hoard = [batch.x for batch in stream(1, MAX_SEQ_LEN)]
finish(Hoarder())
