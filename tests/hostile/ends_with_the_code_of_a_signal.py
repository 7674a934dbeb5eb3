"""Verdict: signal 41|exit code 169

Ends with the exit code by which a shell, or process 1 of a namespace, tells of a death by signal 41.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        if rehearsed:
            os._exit(128 + 41)
        rehearsed.append(True)
        return torch.zeros(*x.shape, VOCAB_SIZE)


rehearsed = []
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
