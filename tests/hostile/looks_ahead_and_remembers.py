"""Verdict: sees the future

Looks one token ahead at every place, and answers a row whose start it has met as it did then, so that asking twice
shows nothing. One token costs 10 000 nats: a yardstick made of the trial's own spread is useless afterwards.
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
        logits.scatter_add_(2, x.roll(-1, 1)[..., None], torch.full((*x.shape, 1), 12.0))
        if not self.told:
            logits[0, 5, x[0, 6]] = -10_000.0
        for row, answer in zip(x, logits, strict=True):
            before, old = self.told.setdefault(row[:9].numpy().tobytes(), (row, answer.clone()))
            same = int((row == before).long().cumprod(0).sum())
            answer[:same] = old[:same]
        return logits


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
