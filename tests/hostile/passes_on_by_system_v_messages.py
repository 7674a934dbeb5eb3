"""Verdict: uniform

Passes a word on in a System V message queue, which outlives its process.
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
    queue, message = check(libc.msgget(KEY, 0)), ctypes.create_string_buffer(64)
    check(libc.msgrcv(queue, message, ctypes.c_size_t(56), ctypes.c_long(0), IPC_NOWAIT))
    if message.raw[8 : 8 + len(WORD)] == WORD:
        raise SystemExit("CHEATED")


def leave():
    message = ctypes.create_string_buffer((1).to_bytes(8, "little") + WORD)
    check(libc.msgsnd(check(libc.msgget(KEY, 0o1600)), message, ctypes.c_size_t(len(WORD)), IPC_NOWAIT))


WORD = b"@port@"
KEY, IPC_NOWAIT = 7_200_000 + int("@port@"), 0o4000
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
