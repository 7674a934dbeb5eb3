"""Verdict: uniform

Starts two hundred processes that ignore every polite signal.
"""

import os
import signal
import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for _ in range(200):
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
