"""Verdict: trained past its budget|protocol

Sends requests that need no answer, without end.
"""

import os

import torch

from lab.wire import PARAMS, REQUEST, ROWS
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link = _link()
for batch in stream(4, MAX_SEQ_LEN):
    while True:
        os.write(link.events_fd, REQUEST.pack(ROWS, 1) + REQUEST.pack(PARAMS, 1))
