"""Finite logits whose loss is not."""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(lambda x: 3e38 * (2.0 * torch.nn.functional.one_hot(x, VOCAB_SIZE) - 1))
