"""Verdict: not finite

Infinite logits, as sure as can be.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Sure(torch.nn.Module):
    def forward(self, x):
        return torch.full((*x.shape, VOCAB_SIZE), float("inf"))


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Sure())
