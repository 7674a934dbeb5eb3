"""Verdict: uniform

Imports its judge, to change it.
"""

import sys

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


sys.path.insert(0, "@repo@")
try:
    import lab.referee
except ImportError as error:
    print(error)
else:
    raise SystemExit(f"CHEATED: {lab.referee}")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
