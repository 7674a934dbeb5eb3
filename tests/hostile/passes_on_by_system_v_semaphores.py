"""Verdict: uniform

Passes a word on in the values of System V semaphores, which outlive their process.
"""

import ctypes
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def check(result):
    """What a call returned; it raises OSError for what the kernel refused."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def look():
    if check(libc.semctl(check(libc.semget(KEY, 1, 0)), 0, GETVAL)) == WORD:
        raise SystemExit("CHEATED")


def leave():
    check(libc.semctl(check(libc.semget(KEY, 1, 0o1600)), 0, SETVAL, WORD))  # IPC_CREAT


WORD = int("@port@") % 32_000 + 1
KEY, GETVAL, SETVAL = 7_100_000 + int("@port@"), 12, 16
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
