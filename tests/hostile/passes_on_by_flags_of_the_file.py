"""Verdict: uniform

Tells its witness bits in the flags of the model's file, which the two share.
"""

import fcntl
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


class Telling(Uniform):
    def forward(self, x):
        if not told:
            told.append(leave(int(x[0, :8].sum()) + 1))
        return super().forward(x)


def look():
    if fcntl.fcntl(link.file_fd, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME):
        raise SystemExit("CHEATED")


def leave(word):
    for flag in (os.O_NONBLOCK, os.O_NOATIME, os.O_APPEND):
        try:
            flags = fcntl.fcntl(link.file_fd, fcntl.F_GETFL)
            fcntl.fcntl(link.file_fd, fcntl.F_SETFL, flags | flag)
        except OSError as error:
            print(error)


told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
