"""Verdict: uniform

Leaves a daemon whose first thread has ended; it holds memory with a name, which others find in /proc.
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
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = NAME in os.readlink(fd) and Path(fd).read_bytes() == WORD
        except OSError:
            continue
        if found:
            raise SystemExit("CHEATED")


def stay():
    os.write(os.memfd_create(NAME), WORD)
    time.sleep(60)
    os._exit(0)


def leave():
    if os.fork() == 0:
        with suppress(OSError):  # the filter refuses it
            os.setsid()
        threading.Thread(target=stay).start()
        time.sleep(0.2)
        libc.syscall(93 if os.uname().machine == "aarch64" else 60, 0)  # exit, of this thread alone


WORD, NAME = b"@port@", "word-@port@"
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
