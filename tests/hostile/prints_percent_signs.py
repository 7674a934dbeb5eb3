"""Verdict: uniform

Prints a line of sixty thousand beginnings of a progress line, whose losses are looked for in whatever follows each.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass
print("1%" * 60_000, flush=True)
finish(Uniform())
