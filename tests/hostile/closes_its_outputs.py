"""Verdict: uniform

Closes all standard streams.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for fd in range(3):
    os.close(fd)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
