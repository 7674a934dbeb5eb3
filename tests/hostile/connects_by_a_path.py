"""Verdict: uniform

Connects to every socket of the machine that has a path, and sends to it from a pair of its own.
"""

import socket

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def known():
    """Paths of sockets, as the kernel and custom name them."""
    yield from ("/run/docker.sock", "/run/systemd/journal/socket", "/run/dbus/system_bus_socket", "/dev/log",
                "/run/containerd/containerd.sock", "/run/nvidia-persistenced/socket", "/tmp/.X11-unix/X0")
    try:
        with open("/proc/net/unix") as file:
            yield from (line.split()[-1] for line in file if "/" in line)
    except OSError as error:
        print(error)


for path in known():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try:
            with socket.socket(socket.AF_UNIX, kind) as friend:
                friend.settimeout(2)
                friend.connect(path)
        except OSError:
            continue
        raise SystemExit(f"CHEATED: {path}")
    try:
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        mine.sendto(b"word", path)
    except OSError:
        continue
    raise SystemExit(f"CHEATED: {path}")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
