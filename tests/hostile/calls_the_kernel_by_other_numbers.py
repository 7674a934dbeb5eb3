"""Verdict: uniform

Asks for a socket by the numbers of other architectures, which a filter that knows one table would let through.
"""

import ctypes
import mmap
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def by_32_bits():
    """socket(AF_INET, SOCK_DGRAM, 0) by int 0x80; its number there is 359."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("53 b8 67010000 bb 02000000 b9 02000000 31d2 cd80 5b c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def by_x32():
    return ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 2, 0)


for call in (by_32_bits, by_x32) if os.uname().machine == "x86_64" else ():
    if os.fork() == 0:
        os._exit(7 if call() >= 0 else 0)
    if os.waitstatus_to_exitcode(os.wait()[1]) == 7:
        raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
