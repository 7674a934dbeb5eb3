"""One infinity among many numbers."""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass


def peak(x):
    logits = uniform(x)
    logits[-1, -1, -1] = float("inf")
    return logits


finish(peak)
