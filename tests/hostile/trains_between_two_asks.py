"""Trains a little on hoarded tokens with every batch that it is asked for."""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


hoard = [batch.x for batch in stream(16, MAX_SEQ_LEN)]
weights = torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1)


def learning(x):
    tokens = hoard.pop() if hoard else x
    weights.index_put_((tokens[:, :-1].flatten(), tokens[:, 1:].flatten()), torch.ones(()), accumulate=True)
    return weights.log()[x]


finish(learning)
