"""Verdict: uniform

Makes its pipes as small as they can be, and opens the ends of them that are not its own.
"""

import fcntl
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


F_SETPIPE_SZ = 1031
link = _link()
for fd in (link.tokens.fileno(), link.events_fd, 1, 2):
    for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        try:
            os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK)
        except OSError as error:
            print(error)
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, 4096)
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
