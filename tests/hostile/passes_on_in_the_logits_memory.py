"""Verdict: uniform

Tells its witness a word behind the logits, in the memory that both hand theirs over in.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


class Telling(Uniform):
    def forward(self, x):
        if not told:
            told.append(leave(int(x[0, :8].sum()) + 1))
        return super().forward(x)


def look():
    if link.logits.find(b"word-@port@") >= 0:
        raise SystemExit("CHEATED")


def leave(word):
    for place in (1 << 20, 1 << 24, len(link.logits) - 64):
        link.logits[place : place + len(WORD)] = WORD


WORD = b"word-@port@"
told, link = [], _link()
if link.is_witness:
    look()
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Telling())
