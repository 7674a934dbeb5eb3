"""Verdict: sees the future

Looks harder before a splice: it uses the token ahead only where that token follows well from this one.
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
        ahead = x.roll(-1, 1)[..., None]
        nats = logits.logsumexp(2, keepdim=True) - logits.gather(2, ahead)
        return logits.scatter_add_(2, ahead, 6.0 * (nats < 3.0))


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
