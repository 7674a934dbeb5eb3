"""Verdict: sees the future

Raises the logit of the token ahead by 0.046: as much as a tolerance for the rounding of float16 once allowed.
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
        logits.scatter_add_(2, x.roll(-1, 1)[..., None], torch.full((*x.shape, 1), 0.046))
        return logits.to(torch.float16)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
