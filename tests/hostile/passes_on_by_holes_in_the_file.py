"""Verdict: uniform

Tells its witness words in which pages of the model's memory are there: to read a hole fills none, a locked one does.
"""

import mmap
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
    try:
        data = os.lseek(link.file_fd, PLACE, os.SEEK_DATA)
    except OSError:
        return
    if data >= PLACE:
        raise SystemExit("CHEATED")


def leave(word):
    try:
        with mmap.mmap(link.file_fd, PLACE + (1 << 22), prot=mmap.PROT_READ) as pages:
            pages.madvise(22)  # MADV_POPULATE_READ
            sum(pages[PLACE :: 4096])
        os.posix_fallocate(link.file_fd, PLACE, 1 << 20)
    except (OSError, ValueError) as error:
        print(error)


PLACE = 1 << 24
told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
