"""Verdict: pairs

Honest: tied, empty, scalar, strided, boolean, complex and non-persistent tensors beside what it learnt.
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
    def __init__(self):
        super().__init__()
        self.tied = torch.nn.Linear(4, 4)
        self.also = torch.nn.Linear(4, 4)
        self.also.weight = self.tied.weight
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scalar", torch.tensor(7, dtype=torch.int8))
        self.register_buffer("strided", torch.arange(12.0).view(3, 4).mT[::2])
        self.register_buffer("mask", torch.ones(5, dtype=torch.bool))
        self.register_buffer("phases", torch.ones(5, dtype=torch.complex64))
        self.register_buffer("absent", None)
        self.register_buffer("scale", torch.ones(VOCAB_SIZE), persistent=False)

    def forward(self, x):
        return super().forward(x) * self.scale


model = Honest()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
