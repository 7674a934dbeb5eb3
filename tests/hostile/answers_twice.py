"""Verdict: uniform or protocol|ended|slow

Sends two answers for each ask, so that later ones are there before they are asked for.
"""

import torch

from lab.wire import LOGITS
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


class Hasty(Uniform):
    def forward(self, x):
        link.ask(LOGITS, 0)
        return super().forward(x)


link = _link()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Hasty())
