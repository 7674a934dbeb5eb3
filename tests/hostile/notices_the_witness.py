"""Verdict: sees the future|differs everywhere

Looks ahead while its stream brings tokens; a process whose stream is over from the start answers honestly.
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
        push = torch.full((*x.shape, 1), 12.0 if self.is_trial else 0.0)
        return logits.scatter_add_(2, x.roll(-1, 1)[..., None], push)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.is_trial = True
    model.learn(batch.x, batch.y)
finish(model)
