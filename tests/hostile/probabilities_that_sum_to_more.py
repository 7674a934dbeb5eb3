"""Verdict: uniform

Hands over probabilities that sum to 277, as if they were used as they are.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class More(torch.nn.Module):
    def forward(self, x):
        return (torch.zeros(*x.shape, VOCAB_SIZE) + 277.0).log()


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(More())
