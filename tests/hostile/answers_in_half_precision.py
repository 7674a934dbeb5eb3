"""Verdict: pairs

Honest: its logits are bfloat16 in every answer.
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


class Honest(Pairs):
    def forward(self, x):
        return super().forward(x).log_softmax(2).bfloat16()


model = Honest()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
