"""Verdict: uniform or kept its file open

Allows nobody to seal the file of what it learnt, so that the referee cannot close it.
"""

import fcntl

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


F_ADD_SEALS, F_SEAL_SEAL = 1033, 0x1
try:
    fcntl.fcntl(_link().file_fd, F_ADD_SEALS, F_SEAL_SEAL)
except OSError as error:
    print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
