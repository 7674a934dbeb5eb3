"""Verdict: uniform

Rewrites the incumbent.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


try:
    open("@repo@/train.py", "r+").close()
except OSError as error:
    print(error)
else:
    raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
