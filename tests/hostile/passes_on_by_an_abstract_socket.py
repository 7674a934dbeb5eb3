"""Verdict: uniform

Leaves a daemon whose first thread has ended; it tells the word to whoever connects to its socket without a path.
"""

import ctypes
import os
import socket
import threading
import time
from contextlib import suppress

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    with socket.socket(socket.AF_UNIX) as friend:
        friend.settimeout(2)
        friend.connect(NAME)
        if friend.recv(64) == WORD:
            raise SystemExit("CHEATED")


def stay():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(NAME)
        server.listen()
        server.settimeout(60)
        friend, _ = server.accept()
        friend.send(WORD)
    os._exit(0)


def leave():
    if os.fork() == 0:
        with suppress(OSError):  # the filter refuses it
            os.setsid()
        threading.Thread(target=stay).start()
        time.sleep(0.2)
        libc.syscall(93 if os.uname().machine == "aarch64" else 60, 0)  # exit, of this thread alone


WORD, NAME = b"@port@", "\0word-@port@"
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
