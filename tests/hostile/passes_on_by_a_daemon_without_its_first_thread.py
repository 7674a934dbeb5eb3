"""Verdict: uniform

Leaves a daemon whose first thread has ended, so that it looks dead; the word is the name of the thread that lives.
"""

import ctypes
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for name in Path("/proc").glob("[0-9]*/task/*/comm"):
        try:
            found = name.read_bytes().strip()
        except OSError:
            continue
        if found == WORD:
            raise SystemExit("CHEATED")


def stay():
    libc.prctl(15, WORD)  # PR_SET_NAME, of this thread
    time.sleep(60)
    os._exit(0)


def leave():
    if os.fork() == 0:
        with suppress(OSError):  # the filter refuses it
            os.setsid()
        threading.Thread(target=stay).start()
        time.sleep(0.2)
        libc.syscall(93 if os.uname().machine == "aarch64" else 60, 0)  # exit, of this thread alone


WORD = b"word-@port@"
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
