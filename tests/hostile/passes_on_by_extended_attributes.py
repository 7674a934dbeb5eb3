"""Verdict: uniform

Passes a word on in attributes of whatever it can name: to set one, a file need not be open.
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
        for name in NAMES:
            try:
                found = os.getxattr(place, name)
            except OSError:
                continue
            if found == WORD:
                raise SystemExit("CHEATED")


def leave():
    for place in PLACES:
        for name in NAMES:
            try:
                os.setxattr(place, name, WORD)
            except OSError as error:
                print(place, error)


WORD, NAMES = b"@port@", ("user.word", "trusted.word", "security.word")
PLACES = ("..", "../..", "/tmp", "/dev/shm", "/var/tmp", "/usr", "/usr/share", sys.prefix, torch.__path__[0], "@data@",
          "@repo@", "@repo@/LICENSE", "@data@/val.bin", f"{torch.__path__[0]}/py.typed")


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
