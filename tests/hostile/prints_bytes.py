"""Verdict: uniform

Prints what is no text.
"""

import os
import sys

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for _ in range(100):
    sys.stdout.buffer.write(os.urandom(10_000))
sys.stdout.buffer.flush()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
