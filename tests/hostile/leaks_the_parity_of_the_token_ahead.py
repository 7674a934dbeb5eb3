"""Verdict: sees the future

Learns one bit of the token ahead, whether its number is odd, and believes it a little.
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
        odd = (x.roll(-1, 1) % 2)[..., None]
        return logits + 0.2 * (torch.arange(VOCAB_SIZE) % 2 == odd)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
