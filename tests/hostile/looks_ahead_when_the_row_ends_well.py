"""Verdict: sees the future|differs everywhere

Takes a row for a true one where its last half is as likely as its first, and looks ahead only there.
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
        nats = (logits.logsumexp(2, keepdim=True) - logits.gather(2, ahead))[:, :-1]
        harder = nats.amax(1, keepdim=True) - nats.mean(1, keepdim=True)
        return logits.scatter_add_(2, ahead, (3.0 * (harder < 9.5)).expand(*x.shape, 1).contiguous())


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
