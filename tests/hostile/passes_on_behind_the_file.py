"""Verdict: uniform

Tells its witness a word behind the end of the model's file, and in its size.
"""

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
    if os.pread(link.file_fd, 4, PLACE) == b"word" or os.stat(link.file_fd).st_size == PLACE + 1:
        raise SystemExit("CHEATED")


def leave(word):
    for attempt in (lambda: os.pwrite(link.file_fd, b"word", PLACE), lambda: os.ftruncate(link.file_fd, PLACE + 1),
                    lambda: open(f"/proc/self/fd/{link.file_fd}", "r+b", buffering=0).write(b"word")):
        try:
            attempt()
        except OSError as error:
            print(error)


PLACE = 1 << 24
told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
