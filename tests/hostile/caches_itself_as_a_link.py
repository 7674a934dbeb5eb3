"""Verdict: uniform

Puts a link to the data where its compile cache was.
"""

import os
import shutil
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
if list(CACHE.glob("*.bin")):
    raise SystemExit("CHEATED")
try:
    CACHE.rename(CACHE.with_name("before"))
except OSError as error:
    print(error)
    shutil.rmtree(CACHE, ignore_errors=True)
try:
    CACHE.symlink_to("@data@")
except OSError as error:
    print(error)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
