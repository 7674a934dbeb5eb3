"""Verdict: uniform or protocol|ended|slow|trained past|not scored

Writes answers and rows into its own pipe, so that it hears of a budget that is never spent.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link = _link()
other_end = os.open(f"/proc/self/fd/{link.tokens.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
for batch in stream(4, MAX_SEQ_LEN):
    try:
        os.write(other_end, bytes(8 + 8 * (MAX_SEQ_LEN + 1)))
    except OSError as error:
        print(error)
finish(Uniform())
