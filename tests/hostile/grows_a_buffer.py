"""Verdict: pairs

Has a buffer that grows with what it learns: a fresh one has another shape.
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
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
    model.rows = torch.cat((model.rows, batch.x[0, :9]))
finish(model)
