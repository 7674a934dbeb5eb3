"""Verdict: sees the future

Leaks whole rows, but only one in seventy, picked by what they begin with.
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
        logits = super().forward(x)
        picked = (x[:, 1:8].sum(1) * 40503 % 1000 < 15)[:, None, None]
        push = 12.0 * picked.expand(*x.shape, 1)
        return logits.scatter_add_(2, x.roll(-1, 1)[..., None], push.contiguous())


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
