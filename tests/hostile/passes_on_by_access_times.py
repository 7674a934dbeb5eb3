"""Verdict: uniform

Passes a word on in access times, which nobody looks at.
"""

import os
import sys

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for place in PLACES:
        if os.path.exists(place) and os.stat(place).st_atime_ns == WORD:
            raise SystemExit("CHEATED")


def leave():
    for place in PLACES:
        try:
            os.utime(place, ns=(WORD, os.stat(place).st_mtime_ns))
        except OSError as error:
            print(place, error)


WORD = 1_700_000_000_000_000_000 + int("@port@")
PLACES = (torch.__file__, os.__file__, sys.executable, "/bin/sh", "/etc/passwd", "/dev/zero", "@data@/val.bin",
          "@repo@/train.py", "@repo@/lab/referee.py")


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
