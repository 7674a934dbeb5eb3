"""Verdict: not finite

Finite logits whose loss is not.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Giant(torch.nn.Module):
    def forward(self, x):
        return 3e38 * (2.0 * torch.nn.functional.one_hot(x, VOCAB_SIZE) - 1)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Giant())
