"""Hands over probabilities that sum to 277, as if they were used as they are."""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(lambda x: (uniform(x) + 277.0).log())
