"""Verdict: uniform

Tells its witness words in locks on ranges of the model's file, which last as long as the referee has it open.
"""

import fcntl
import os
import struct

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
    with open(f"/proc/self/fd/{link.file_fd}", "rb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        if struct.unpack("hhqqi4x", fcntl.fcntl(file, F_OFD_GETLK, lock))[0] != fcntl.F_UNLCK:
            raise SystemExit("CHEATED")


def leave(word):
    try:
        for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
            fcntl.fcntl(link.file_fd, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, word, 1, 0))
    except OSError as error:
        print(error)


F_OFD_GETLK, F_OFD_SETLK = 36, 37
told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
