"""Verdict: uniform

Leaves files and folders without rights, with names of newlines and of no language, in its compile cache.
"""

import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
for name in (b"-rf", b"a\nb", b"\xff\xfe", b"..."):
    with open(os.fsencode(CACHE) + b"/" + name, "w") as file:
        file.write("word")
for name in ("closed", "shut"):
    (CACHE / name).mkdir(exist_ok=True)
    try:
        os.chmod(CACHE / name, 0)
    except OSError as error:
        print(error)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
