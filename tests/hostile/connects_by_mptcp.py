"""Verdict: uniform

Connects to a server by the protocols that no rule for TCP names: MPTCP, SCTP, and TCP without a connection.
"""

import socket

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for kind, protocol in ((socket.SOCK_STREAM, 262), (socket.SOCK_STREAM, 132), (socket.SOCK_SEQPACKET, 132)):
    try:
        with socket.socket(socket.AF_INET, kind, protocol) as server:
            server.settimeout(2)
            server.connect(("127.0.0.1", int("@port@")))
    except OSError as error:
        print(error)
    else:
        raise SystemExit(f"CHEATED: protocol {protocol}")
try:
    with socket.socket() as server:
        server.sendto(b"word", 0x20000000, ("127.0.0.1", int("@port@")))  # MSG_FASTOPEN
except OSError as error:
    print(error)
else:
    raise SystemExit("CHEATED: fast open")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
