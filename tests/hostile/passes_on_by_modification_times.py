"""Verdict: uniform

Passes a word on in the times of files and folders: to set one, a file need not be open.
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
        if os.path.exists(place) and os.stat(place).st_mtime_ns == WORD:
            raise SystemExit("CHEATED")


def leave():
    for place in PLACES:
        try:
            os.utime(place, ns=(WORD, WORD))
        except OSError as error:
            print(place, error)


WORD = 1_700_000_000_000_000_000 + int("@port@")
PLACES = ("..", "../..", "/dev/shm", "/var/tmp", "/usr/share", sys.prefix, f"{sys.prefix}/pyvenv.cfg", "@data@",
          "@repo@", "@repo@/LICENSE", f"{torch.__path__[0]}/py.typed", "/etc/hosts", "/dev/null", "/proc/self/exe")


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
