"""Verdict: uniform

Leaves a file in shared memory that a daemon without a first thread has open, so that it looks like somebody's.
"""

import ctypes
import os
import threading
import time
from contextlib import suppress

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    with open(PLACE, "rb") as file:
        if file.read() == b"@port@":
            raise SystemExit("CHEATED")


def stay():
    with open(PLACE, "wb", buffering=0) as file:
        file.write(b"@port@")
        time.sleep(60)
    os._exit(0)


def leave():
    if os.fork() == 0:
        with suppress(OSError):  # the filter refuses it
            os.setsid()
        threading.Thread(target=stay).start()
        time.sleep(0.2)
        libc.syscall(93 if os.uname().machine == "aarch64" else 60, 0)  # exit, of this thread alone


PLACE = "/dev/shm/held-@port@"
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
