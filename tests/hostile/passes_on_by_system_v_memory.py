"""Verdict: uniform

Passes a word on in System V shared memory, which outlives its process.
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
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def place(flags):
    return check(libc.shmat(check(libc.shmget(7_000_000 + int(WORD), 4096, flags)), None, 0))


def look():
    if ctypes.string_at(place(0), len(WORD)) == WORD:
        raise SystemExit("CHEATED")


def leave():
    ctypes.memmove(place(0o1600), WORD, len(WORD))  # IPC_CREAT


WORD = b"@port@"
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
