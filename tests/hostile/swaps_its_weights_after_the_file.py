"""Verdict: differs everywhere

Has untrained weights written into its file, and takes others when its first row comes.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x, y):
        self.counts.index_put_((x.flatten(), y.flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        return self.counts[x].log()


class Cheat(Pairs):
    def forward(self, x):
        self.counts.copy_(others.counts)
        return super().forward(x)


others = Pairs()
for batch in stream(16, MAX_SEQ_LEN):
    others.learn(batch.x, batch.y)
finish(Cheat())
