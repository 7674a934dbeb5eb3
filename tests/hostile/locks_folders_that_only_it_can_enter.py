"""Verdict: uniform

Leaves files in folders that can be entered and not listed, which an ordinary user cannot delete as they are.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


os.umask(0)
for mode in (0o300, 0o100, 0o000, 0o500):
    os.mkdir(f"folder-{mode:o}", 0o700)
    here = os.open(f"folder-{mode:o}", os.O_RDONLY)
    os.mkdir("inside", mode | 0o200, dir_fd=here)
    try:
        os.close(os.open(f"folder-{mode:o}/inside/file", os.O_CREAT | os.O_WRONLY, 0))
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
