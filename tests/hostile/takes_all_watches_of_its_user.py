"""Verdict: uniform or asked for no data

Watches pipes by so many epoll sets that the kernel keeps no further watch for any process of this user, the referee's
and the agent's among them.
"""

import os
import resource
import select

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def take():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    watched = [fd for _ in range(min(hard, 20_000) // 3) for fd in os.pipe()]
    while True:
        watcher = select.epoll()
        sets.append(watcher)
        for fd in watched:
            watcher.register(fd, select.EPOLLERR)


sets = []
try:
    take()
except OSError as error:
    print(len(sets), error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
