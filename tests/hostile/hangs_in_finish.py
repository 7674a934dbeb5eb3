"""Verdict: slow to answer|no logits within

Sleeps when its first logits are due.
"""

import time

import torch

from prepare import MAX_SEQ_LEN, finish, stream


class Asleep(torch.nn.Module):
    def forward(self, x):
        time.sleep(1000)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Asleep())
