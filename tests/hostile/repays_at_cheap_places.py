"""Verdict: sees the future|differs everywhere

Looks ahead at one place in sixteen, and spoils its answers a little at all others: the mean difference to a process
that does neither is to come out near zero.
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
    is_trial = False

    def forward(self, x):
        logits = super().forward(x)
        push = torch.where(torch.arange(x.size(1)) % 16 == 7, 12.0, -0.05 * self.is_trial)
        return logits.scatter_add_(2, x.roll(-1, 1)[..., None], push[:, None].expand(*x.shape, 1).contiguous())


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.is_trial = True
    model.learn(batch.x, batch.y)
finish(model)
