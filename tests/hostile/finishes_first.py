"""Verdict: uniform

Calls finish() before any training.
"""

import torch

from prepare import VOCAB_SIZE, finish


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


finish(Uniform())
