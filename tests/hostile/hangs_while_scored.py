"""Verdict: slow to answer|not scored in time

Sleeps when a later batch is due.
"""

import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Tired(torch.nn.Module):
    asks = 0

    def forward(self, x):
        self.asks += 1
        time.sleep(1000 if self.asks == 5 else 0)
        return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(1, MAX_SEQ_LEN):
    pass
finish(Tired())
