"""Verdict: slow to answer|no logits within

Trains on hoarded tokens for a minute when its first logits are due.
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
        until = time.monotonic() + 60
        while hoard and time.monotonic() < until:
            self.learn(hoard[0])
        return self.counts[x].log()


hoard = [batch.x for batch in stream(16, MAX_SEQ_LEN)]
finish(Hoarder())
