"""Verdict: uniform

Tells its witness words in the times, the mode and an attribute of the model's file.
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
    found = os.stat(link.file_fd)
    if found.st_mtime < 1e9 or found.st_atime < 1e9 or found.st_mode & 0o7000:
        raise SystemExit("CHEATED")
    try:
        named = os.listxattr(link.file_fd)
    except OSError:
        return
    if named:
        raise SystemExit("CHEATED")


def leave(word):
    for attempt in (lambda: os.utime(link.file_fd, (word, word)), lambda: os.fchmod(link.file_fd, 0o4600),
                    lambda: os.setxattr(link.file_fd, "user.word", b"%d" % word)):
        try:
            attempt()
        except OSError as error:
            print(error)


told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
