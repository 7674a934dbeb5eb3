"""Verdict: pairs or sees the future

Adds the pairs of the whole row to its counts before it answers for the row, and takes them out again.
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
        answers = []
        for row in x:
            self.learn(row[:-1], row[1:])
            answers.append(super().forward(row[None]))
            self.counts.index_put_((row[:-1], row[1:]), torch.tensor(-1.0), accumulate=True)
        return torch.cat(answers)


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
