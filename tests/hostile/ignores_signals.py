"""Hangs, and ignores every signal that can be ignored."""

import signal
import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
next(stream(1, MAX_SEQ_LEN))
time.sleep(1000)
