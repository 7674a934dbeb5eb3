"""Verdict: protocol

Names a type of logits that does not exist.
"""

import torch

from lab.wire import LOGITS
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


class Strange(Uniform):
    def forward(self, x):
        link.ask(LOGITS, 1 << 40)
        return super().forward(x)


link = _link()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Strange())
