"""Verdict: uniform or Permission denied

Leaves a message for later trials in shared memory.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


with open("/dev/shm/from-a-trial", "w") as file:
    file.write("weights")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
