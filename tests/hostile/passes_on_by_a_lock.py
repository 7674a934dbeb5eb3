"""Verdict: uniform

Passes a word on in a lock on a file that it may only read, held by a process without a first thread.
"""

import ctypes
import fcntl
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
    with open(PLACE) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("CHEATED") from None


def hold():
    with open(PLACE) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(60)
    os._exit(0)


def leave():
    if os.fork() == 0:
        with suppress(OSError):  # the filter refuses it
            os.setsid()
        threading.Thread(target=hold).start()
        time.sleep(0.2)
        libc.syscall(93 if os.uname().machine == "aarch64" else 60, 0)  # exit, of this thread alone


PLACE = os.path.join(os.path.dirname(os.__file__), sorted(os.listdir(os.path.dirname(os.__file__)))[int("@port@") % 40])
libc = ctypes.CDLL(None, use_errno=True)
if not os.path.isfile(PLACE):
    PLACE = os.__file__


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
