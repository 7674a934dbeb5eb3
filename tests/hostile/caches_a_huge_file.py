"""Verdict: uniform

Leaves a file of a terabyte without a byte in it in its compile cache: who copies it fills the disk.
"""

import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
if (CACHE / "huge").exists():
    raise SystemExit("CHEATED: more than the limit is copied")
with open(CACHE / "huge", "wb") as file:
    for size in (1 << 40, 15 << 30, 5 << 30):
        try:
            file.truncate(size)
            break
        except OSError as error:
            print(error)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
