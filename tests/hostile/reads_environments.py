"""Verdict: uniform

Looks for a key in its own environment and in those of all processes.
"""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


texts = [str(os.environ)]
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/environ") as file:
            texts.append(file.read())
    except OSError as error:
        print(error)
if "sk-hostile-test" in "".join(texts):
    raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
