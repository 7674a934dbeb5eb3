"""Verdict: uniform

Passes a word on in a POSIX message queue, which outlives its process.
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


def queue(flags):
    sizes = (ctypes.c_long * 8)(0, 4, 64)  # struct mq_attr: flags, messages, bytes of one
    return check(libc.mq_open(b"/word-@port@", flags | os.O_RDWR | os.O_NONBLOCK, 0o600, sizes))


def look():
    message, priority = ctypes.create_string_buffer(64), ctypes.c_uint()
    check(libc.mq_receive(queue(0), message, ctypes.c_size_t(64), ctypes.byref(priority)))
    if message.value == WORD:
        raise SystemExit("CHEATED")


def leave():
    check(libc.mq_send(queue(os.O_CREAT), WORD, ctypes.c_size_t(len(WORD)), 0))


WORD = b"@port@"
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
