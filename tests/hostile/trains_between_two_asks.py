"""Verdict: differs everywhere|sees the future|slow to answer

Trains a little on hoarded tokens with every batch that it is asked for.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Hoarder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x):
        self.counts.index_put_((x[:, :-1].flatten(), x[:, 1:].flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        if hoard:
            self.learn(hoard.pop())
        return self.counts[x].log()


hoard = [batch.x for batch in stream(16, MAX_SEQ_LEN)]
finish(Hoarder())
