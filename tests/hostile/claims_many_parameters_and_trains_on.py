"""Verdict: trained past its budget|protocol

Says again and again that it has many parameters to write, and trains three seconds more meanwhile.
"""

import time

import torch

from lab.wire import PARAMS
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link, model = _link(), Uniform()
for batch in stream(4, MAX_SEQ_LEN):
    pass
for _ in range(6):
    link.ask(PARAMS, 10**9)
    time.sleep(0.0 if link.is_witness else 0.5)
finish(model)
