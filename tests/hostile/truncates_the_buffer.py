"""Verdict: uniform

Cuts the shared buffer short under the reader.
"""

import json
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


fd = json.loads(os.environ["AUTORESEARCH_TRIAL"])["logits_fd"]
try:
    os.ftruncate(fd, 0)
except OSError as error:
    print(error)
else:
    raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
