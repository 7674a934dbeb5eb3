"""Verdict: trained past its budget|protocol

Says that it has more parameters than there are bytes, which it then takes all the time in the world to write.
"""

import time

import torch

from lab.wire import PARAMS
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link = _link()
for batch in stream(4, MAX_SEQ_LEN):
    link.ask(PARAMS, 1 << 63)
    time.sleep(1000)
