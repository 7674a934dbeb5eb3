"""Verdict: uniform

Reserves a terabyte of disk.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


try:
    os.posix_fallocate(os.open("huge", os.O_RDWR | os.O_CREAT), 0, 10**12)
except OSError as error:
    print(error)
else:
    raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
