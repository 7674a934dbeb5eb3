"""Verdict: differs everywhere

Keeps a part of what it learnt in a plain attribute, which is in no file.
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
    def __init__(self):
        super().__init__()
        self.more = {"counts": self.counts.clone()}

    def forward(self, x):
        return self.more["counts"][x].log()


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.more["counts"].index_put_((batch.x.flatten(), batch.y.flatten()), torch.ones(()), accumulate=True)
finish(model)
