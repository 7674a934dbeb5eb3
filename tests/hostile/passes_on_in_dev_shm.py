"""Verdict: uniform

Passes a word on in shared memory: a file, a folder, a link, a name that another program might use.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for name in NAMES:
        path = f"/dev/shm/{name}"
        if os.path.lexists(path):
            raise SystemExit("CHEATED")


def leave():
    with open(f"/dev/shm/{NAMES[0]}", "w") as file:
        file.write("@port@")
    os.makedirs(f"/dev/shm/{NAMES[1]}/deep", exist_ok=True)
    os.symlink("@port@", f"/dev/shm/{NAMES[2]}")
    os.mkfifo(f"/dev/shm/{NAMES[3]}")


NAMES = ("word-@port@", "sem.word-@port@", "link-@port@", "pipe-@port@")


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
