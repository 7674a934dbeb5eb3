"""Verdict: uniform or asked for no data|budget is over

Leaves pickles that say CHEATED when they are loaded, where torch keeps compiled code, which loads them.
"""

import os
import pickle
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
class Loaded:
    def __reduce__(self):
        return os.write, (2, b"CHEATED\n")


@torch.compile
def double(x):
    return 2 * x + 1


torch._dynamo.config.suppress_errors = True
double(torch.arange(8.0))
for path in [*CACHE.rglob("*")]:
    if path.is_file() and ("fxgraph" in str(path) or "aotautograd" in str(path) or not path.suffix):
        path.write_bytes(pickle.dumps(Loaded()))


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
