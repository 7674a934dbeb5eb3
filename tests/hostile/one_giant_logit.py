"""Verdict: not finite

One infinity among many numbers.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Peak(torch.nn.Module):
    def forward(self, x):
        logits = torch.zeros(*x.shape, VOCAB_SIZE)
        logits[-1, -1, -1] = float("inf")
        return logits


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Peak())
