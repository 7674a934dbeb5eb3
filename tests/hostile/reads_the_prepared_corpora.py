"""Verdict: uniform

Reads what the cache of corpora holds, by every name that it may have.
"""

import glob
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look_at(path):
    """Say so if one byte of a held-out file can be read."""
    try:
        with open(path, "rb") as file:
            found = file.read(1)
    except OSError:
        return
    if found:
        raise SystemExit(f"CHEATED: {path}")


PLACES = ("@data@", os.path.dirname("@data@"), "/*/.cache/autoresearch", "/home/*/.cache/autoresearch",
          "/proc/[0-9]*/cwd", "/proc/[0-9]*/root@data@")
for place in PLACES:
    for name in ("val.bin", "test.bin", "*/val.bin", "*/test.bin", "*/*/val.bin", "*/*/test.bin"):
        for path in glob.iglob(f"{place}/{name}"):
            look_at(path)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
