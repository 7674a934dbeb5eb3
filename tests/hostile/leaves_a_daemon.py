"""Verdict: uniform

Forks twice, in a session of its own, and ends.
"""

import os
import time
from contextlib import suppress

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


if os.fork() == 0:
    with suppress(OSError):  # the filter refuses it
        os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
