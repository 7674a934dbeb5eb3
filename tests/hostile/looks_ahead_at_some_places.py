"""Verdict: sees the future

Looks ahead at two places in five, a little, and answers an equal start of a row from memory.
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
    told = {}

    def forward(self, x):
        logits = super().forward(x)
        push = 5.0 * (torch.arange(x.size(1)) % 5 < 2)
        logits.scatter_add_(2, x.roll(-1, 1)[..., None], push[:, None].expand(*x.shape, 1).contiguous())
        for row, answer in zip(x, logits, strict=True):
            before, old = self.told.setdefault(row[:9].numpy().tobytes(), (row, answer.clone()))
            same = int((row == before).long().cumprod(0).sum())
            answer[:same] = old[:same]
        return logits


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
