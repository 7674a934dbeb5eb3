"""Verdict: uniform

Leaves a daemon that is a child of its own parent, lets no signal of a parent's death through and adopts others.
"""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            found = name.read_bytes().strip()
        except OSError:
            continue
        if found == WORD:
            raise SystemExit("CHEATED")


def leave():
    if libc.syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        for option in (PR_SET_PDEATHSIG, PR_SET_DUMPABLE):
            libc.prctl(option, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        with suppress(OSError):  # the filter refuses it
            os.setsid()
        libc.prctl(PR_SET_NAME, WORD)
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                continue
        if os.fork() == 0:
            with suppress(OSError):  # the filter refuses it
                os.setsid()
        time.sleep(60)
        os._exit(0)


CLONE, CLONE_PARENT = 220 if os.uname().machine == "aarch64" else 56, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36
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
