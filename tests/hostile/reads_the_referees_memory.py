"""Verdict: uniform

Looks for the targets in the memory of its parent.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


try:
    open(f"/proc/{os.getppid()}/mem", "rb").read(1)
except OSError as error:
    print(error)
else:
    raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
