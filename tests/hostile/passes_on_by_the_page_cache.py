"""Verdict: uniform

Passes a word on in which pages of a file are in memory, and asks the kernel which ones.
"""

import ctypes
import mmap
import os
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def in_memory():
    """One bit a page, of every eighth page."""
    with open(PLACE, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as pages:
        start = ctypes.c_void_p(torch.frombuffer(pages, dtype=torch.uint8).data_ptr())
        found = (ctypes.c_ubyte * (-(-len(pages) // PAGE)))()
        if libc.mincore(start, ctypes.c_size_t(len(pages)), found):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return "".join(str(found[8 * bit] & 1) for bit in range(16))


def look():
    if in_memory() == WORD:
        raise SystemExit("CHEATED")


def leave():
    with open(PLACE, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for place, bit in enumerate(WORD):
            if bit == "1":
                os.pread(file.fileno(), 1, 8 * place * PAGE)


PAGE = mmap.PAGESIZE
WORD = f"{int('@port@') % (1 << 14) * 4 + 1:016b}"
PLACE = max((path for path in Path(torch.__path__[0]).rglob("*.h")), key=lambda path: path.stat().st_size)
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
