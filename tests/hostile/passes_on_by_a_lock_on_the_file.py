"""Verdict: uniform

Tells its witness one bit in a lock on the model's file, which lasts as long as the referee has it open.
"""

import fcntl

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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("CHEATED") from None


def leave(word):
    fcntl.flock(link.file_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
