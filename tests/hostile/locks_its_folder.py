"""Verdict: uniform or Operation not permitted

Makes its own folder unreadable, full of odd names and deep.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


os.makedirs("locked/inside")
for name in ("-rf", "a\nb", " ", "*", "\udcff"):
    with open(name, "w") as file:
        file.write("x")
here = os.getcwd()
for _ in range(3000):
    os.mkdir("d")
    os.chdir("d")
os.chdir(here)
os.chmod("locked/inside", 0)
os.chmod("locked", 0)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
