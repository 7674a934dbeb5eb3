"""Verdict: uniform

Passes a word on in every folder where programs leave files.
"""

import os
import tempfile

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for place in PLACES:
        if os.path.lexists(f"{place}/word-@port@"):
            raise SystemExit("CHEATED")


def leave():
    for place in PLACES:
        try:
            with open(f"{place}/word-@port@", "w") as file:
                file.write("@port@")
        except OSError as error:
            print(error)


PLACES = ("/tmp", "/var/tmp", "/run", "/run/lock", "/dev", "/dev/mqueue", "/var/lock", "/var/cache", "/root", "/home",
          "/", "/usr/local", "/sys/fs/cgroup", os.path.expanduser("~"), tempfile.gettempdir())


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
