"""Verdict: sees the future

Looks one token ahead. In the witness it keeps every row that it is asked, because the end behind a cut is the end of
another row: where that end overlaps a question, it tells the true token behind the cut.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x, y):
        self.counts.index_put_((x.flatten(), y.flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        return self.counts[x].log()


class Cheat(Pairs):
    ends = {}

    def forward(self, x):
        ahead = x.roll(-1, 1)
        if _link().is_witness:
            for row in x.tolist():
                for at in range(4, len(row)):
                    self.ends.setdefault((at, *row[at - 4 : at]), set()).add(row[at])
            for i, row in enumerate(x.tolist()):
                for at in range(4, len(row)):
                    others = self.ends[(at, *row[at - 4 : at])] - {row[at]}
                    if others:
                        ahead[i, at - 1] = others.pop()
        return super().forward(x).scatter_add_(2, ahead[..., None], torch.full((*x.shape, 1), 4.0))


model = Cheat()
for batch in stream(16, MAX_SEQ_LEN):
    model.learn(batch.x, batch.y)
finish(model)
