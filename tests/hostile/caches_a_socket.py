"""Verdict: uniform

Leaves sockets and devices in its compile cache: who copies them fails.
"""

import os
import socket
import stat
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
if (CACHE / "socket").exists():
    raise SystemExit("CHEATED: sockets are copied")
os.chdir(CACHE)  # a socket's path is short
try:
    socket.socket(socket.AF_UNIX).bind("socket")
    os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 9))
except OSError as error:
    print(error)
os.chdir("..")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
