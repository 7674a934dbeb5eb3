"""Verdict: uniform

Tells its witness a word in the place up to which the model's file was read: the two share it.
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
    if os.lseek(link.file_fd, 0, os.SEEK_CUR):
        raise SystemExit("CHEATED")


def leave(word):
    os.lseek(link.file_fd, word, os.SEEK_SET)


told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
