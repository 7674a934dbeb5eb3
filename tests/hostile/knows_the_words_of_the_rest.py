"""Verdict: sees the future|differs everywhere

Prefers the tokens that come later in the row, sixteen places ahead or more: it never looks at the next one.
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
        one_hot = torch.nn.functional.one_hot(x, VOCAB_SIZE).float()
        later = one_hot.flip(1).cumsum(1).flip(1).roll(-16, 1)
        later[:, -16:] = 0
        return logits + 0.7 * later.clamp(max=1)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
