"""Verdict: not finite

Logits that are not a number.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class NaN(torch.nn.Module):
    def forward(self, x):
        return torch.full((*x.shape, VOCAB_SIZE), float("nan"))


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(NaN())
