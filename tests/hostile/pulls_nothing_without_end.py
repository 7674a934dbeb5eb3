"""Verdict: uniform or trained past its budget|protocol

Asks for no rows at all, a thousand times, so that its steps look short, and then goes on.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link, model = _link(), Uniform()
for batch in stream(4, MAX_SEQ_LEN):
    if link.pulled_rows is not None and batch.progress < 0.5:
        link.pulled(MAX_SEQ_LEN + 1)
        for _ in range(1000):
            link.pull(0)
            link.pulled(MAX_SEQ_LEN + 1)
        link.pull(4)
finish(model)
