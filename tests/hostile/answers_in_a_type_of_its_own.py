"""Verdict: protocol

Names a type of logits that does not exist.
"""

import torch

import prepare
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass
ask = prepare._link().ask
prepare._link().ask = lambda operation, count=0: ask(operation, 77 if operation == prepare.wire.LOGITS else count)
finish(Uniform())
