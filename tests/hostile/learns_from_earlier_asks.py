"""Verdict: differs everywhere|sees the future

Learns from every row that it is asked about, and answers a row that it has met from memory. It has nothing from its
stream, so that whatever is better than a uniform guess came from the questions.
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
        for row, answer in zip(x, logits, strict=True):
            before, old = self.told.setdefault(row[:9].numpy().tobytes(), (row, answer.clone()))
            same = int((row == before).long().cumprod(0).sum())
            answer[:same] = old[:same]
        self.learn(x[:, :-1], x[:, 1:])
        return logits


for _ in stream(16, MAX_SEQ_LEN):
    pass
finish(Cheat())
