"""Verdict: uniform

Connects to every socket of the machine that has a name and no path.
"""

import socket

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def known():
    try:
        with open("/proc/net/unix") as file:
            yield from ("\0" + line.split()[-1][1:] for line in file if line.split()[-1].startswith("@"))
    except OSError as error:
        print(error)


for name in {*known(), "\0/tmp/.X11-unix/X0", "\0/containerd-shim/word.sock", "\0@port@"}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try:
            with socket.socket(socket.AF_UNIX, kind) as friend:
                friend.settimeout(2)
                friend.connect(name)
        except OSError:
            continue
        raise SystemExit(f"CHEATED: {name!r}")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
