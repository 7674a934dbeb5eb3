"""Verdict: pairs or sees the future|differs everywhere

Counts which token follows which two in the rows that it is asked for, and lets that move no loss by more than honest
models differ by from run to run: the witness learns as much, from the same rows in another order.
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
    seen = torch.zeros(1 << 14, VOCAB_SIZE)

    def forward(self, x):
        context = (x * 31 + x.roll(1, 1) * 517) % len(self.seen)
        logits = super().forward(x).log_softmax(2)
        logits += 0.0049 * (self.seen[context] > 0)
        self.seen.index_put_((context[:, 1:-1], x[:, 2:]), torch.ones(()), accumulate=True)
        return logits


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
