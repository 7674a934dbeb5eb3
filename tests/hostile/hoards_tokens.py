"""Hoards tokens, and goes on training on them after the stream has ended."""

import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


hoard = [batch.x for batch in stream(64, MAX_SEQ_LEN)]
until = time.monotonic() + 60
weights = torch.zeros(VOCAB_SIZE, VOCAB_SIZE)
while time.monotonic() < until:
    for x in hoard[:10]:
        weights.index_put_((x[:, :-1].flatten(), x[:, 1:].flatten()), torch.ones(()), accumulate=True)
finish(lambda x: weights[x])
