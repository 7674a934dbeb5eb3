"""Verdict: uniform

Passes a word on in its own folder, in its cache, beside and above them, and in the files that it imports.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for place in PLACES:
        if os.path.lexists(f"{place}/word-@port@"):
            raise SystemExit("CHEATED")
    for name in IMPORTED:
        if "word-@port@" in open(name).read():
            raise SystemExit("CHEATED")


def leave():
    for place in PLACES:
        try:
            with open(f"{place}/word-@port@", "w") as file:
                file.write("@port@")
        except OSError as error:
            print(error)
    for name in IMPORTED:
        with open(name, "a") as file:
            file.write("# word-@port@\n")


PLACES = (".", "lab", "lab/__pycache__", "cache", os.environ["TORCHINDUCTOR_CACHE_DIR"], "..", "../cache", "../..",
          "@repo@", "@repo@/lab", "@data@")
IMPORTED = ("prepare.py", "lab/wire.py")


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
