"""Verdict: uniform

Lets nobody map the memory of its logits for writing any more, so that the referee cannot read them as it does.
"""

import fcntl
import json
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


F_ADD_SEALS, F_SEAL_FUTURE_WRITE = 1033, 0x10
_link()
try:
    fcntl.fcntl(json.loads(os.environ["AUTORESEARCH_TRIAL"])["logits_fd"], F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
except OSError as error:
    print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
