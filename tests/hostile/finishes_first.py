"""Calls finish() before any training."""

import torch

from prepare import VOCAB_SIZE, finish


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


finish(uniform)
