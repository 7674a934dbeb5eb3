"""Verdict: uniform

Asks the kernel to tell it when somebody opens the data, the checkout or the interpreter.
"""

import ctypes
import os
import sys

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init1(0)
for place in ("@data@", "@repo@", "@repo@/train.py", "..", sys.prefix, sys.executable, "/etc/hosts"):
    if watch >= 0 and libc.inotify_add_watch(watch, place.encode(), 0x20) >= 0:  # IN_OPEN
        raise SystemExit(f"CHEATED: {place}")
print(os.strerror(ctypes.get_errno()))


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
