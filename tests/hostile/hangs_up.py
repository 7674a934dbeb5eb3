"""Closes both pipes and goes on living."""

import os
import time

import torch

import prepare
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


link = prepare._link()
next(stream(1, MAX_SEQ_LEN))
os.close(link.events_fd)
link.tokens.close()
time.sleep(1000)
