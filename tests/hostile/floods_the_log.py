"""Verdict: uniform

Prints two hundred megabytes.
"""

import sys

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for _ in range(2000):
    sys.stdout.write("x" * 99_999 + "\n")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
