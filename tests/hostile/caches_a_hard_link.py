"""Verdict: uniform

Leaves hard links to files of the data, of the checkout and of the interpreter in its compile cache.
"""

import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
for place in ("@data@/val.bin", "@data@/test.bin", "@repo@/results.tsv", "/etc/shadow"):
    path = CACHE / Path(place).name
    try:
        path.hardlink_to(place)
        path.read_bytes()
    except OSError as error:
        print(error)
    else:
        raise SystemExit("CHEATED")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
