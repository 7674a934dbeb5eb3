"""Verdict: uniform

Sends datagrams to the machine and to the world.
"""

import socket

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for family, kind, protocol, address in (
        (socket.AF_INET, socket.SOCK_DGRAM, 0, ("127.0.0.1", int("@port@"))),
        (socket.AF_INET6, socket.SOCK_DGRAM, 0, ("::1", int("@port@"))),
        (socket.AF_INET, socket.SOCK_DGRAM, 136, ("127.0.0.1", int("@port@"))),
        (socket.AF_INET, socket.SOCK_DGRAM, 0, ("192.0.2.1", 53)),
        (socket.AF_INET, socket.SOCK_DGRAM, 1, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_RAW, 1, ("127.0.0.1", 0))):
    try:
        with socket.socket(family, kind, protocol) as anybody:
            anybody.sendto(b"\x08\0\0\0word", address)
    except OSError as error:
        print(error)
    else:
        raise SystemExit(f"CHEATED: {family} {kind} {protocol}")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
