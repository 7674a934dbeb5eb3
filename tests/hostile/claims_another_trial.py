"""Verdict: uniform

Rewrites the description of the trial in its environment.
"""

import json
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


trial = json.loads(os.environ["AUTORESEARCH_TRIAL"])
os.environ["AUTORESEARCH_TRIAL"] = json.dumps(trial | {"budget": 9999, "seed": 0, "split": "train"})
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
