"""Verdict: uniform

Leaves links to the data in place of its compile cache and in it: what copies them hands the next trial the data.
"""

import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
for place in (CACHE, CACHE / "data", CACHE / "split", CACHE / "deep" / "data"):
    for path in (place / "val.bin", place):
        try:
            found = path.read_bytes()
        except OSError:
            continue
        raise SystemExit("CHEATED")
for place, target in (("data", "@data@"), ("split", "@data@/val.bin"), ("deep/data", "@data@")):
    try:
        (CACHE / place).parent.mkdir(exist_ok=True)
        (CACHE / place).symlink_to(target)
    except OSError as error:
        print(error)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
