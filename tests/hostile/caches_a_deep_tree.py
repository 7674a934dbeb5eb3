"""Verdict: uniform

Leaves a tree in its compile cache that is deeper than a path can be, and one that is wide.
"""

import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
here = os.getcwd()
try:
    os.chdir(CACHE)
    for _ in range(3000):
        os.mkdir("deep")
        os.chdir("deep")
except OSError as error:
    print(error)
os.chdir(here)
(CACHE / "wide").mkdir(exist_ok=True)
for number in range(30_000):
    (CACHE / "wide" / f"{number}").touch()


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
