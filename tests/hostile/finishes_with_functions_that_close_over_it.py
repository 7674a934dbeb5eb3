"""Verdict: differs everywhere|sees the future

Hands over a module without a tensor, whose forward holds what was learnt.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Closed(torch.nn.Module):
    def forward(self, x):
        return counts[x].log()


counts = torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1)
for batch in stream(16, MAX_SEQ_LEN):
    counts.index_put_((batch.x.flatten(), batch.y.flatten()), torch.ones(()), accumulate=True)
finish(Closed())
