"""Verdict: uniform or did not load

Makes twenty thousand files.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for number in range(20_000):
    open(f"file{number}", "w").close()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
