"""Verdict: uniform

Says that its logits are there without having written any.
"""

import mmap

import torch

import prepare
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Sure(torch.nn.Module):
    def forward(self, x):
        return torch.full((*x.shape, VOCAB_SIZE), 1e3)


for batch in stream(4, MAX_SEQ_LEN):
    pass
link = prepare._link()
link.logits = mmap.mmap(-1, len(link.logits))
finish(Sure())
