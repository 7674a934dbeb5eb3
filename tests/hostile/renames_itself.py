"""Verdict: uniform

Renames and replaces its own train.py and prepare.py.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


os.rename("train.py", "gone.py")
os.remove("prepare.py")
os.mkdir("train.py")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
