"""Verdict: trained past its budget

Never asks for a batch, so that no clock starts, and trains until its start-up would be too long, on text that it finds.
"""

import time
from pathlib import Path

import torch

from prepare import VOCAB_SIZE, finish


class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x, y):
        self.counts.index_put_((x.flatten(), y.flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        return self.counts[x].log()


model, began = Pairs(), time.monotonic()
text = torch.tensor([*Path(torch.__file__).read_bytes()])
while time.monotonic() < began + 14:
    model.learn(text[:-1], text[1:])
finish(model)
