"""Lists the folder of the corpus."""

import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


try:
    os.listdir("@data@")
except OSError as error:
    print(error)
else:
    raise SystemExit("CHEATED")
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(uniform)
