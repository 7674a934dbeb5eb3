"""Verdict: sees the future

Counts what it is asked and looks ahead from the thirtieth ask to the sixtieth.
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
    asks = 0

    def forward(self, x):
        logits = super().forward(x)
        self.asks += 1
        push = torch.full((*x.shape, 1), 12.0 if 30 <= self.asks < 60 else 0.0)
        return logits.scatter_add_(2, x.roll(-1, 1)[..., None], push)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
