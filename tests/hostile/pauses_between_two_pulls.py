"""Verdict: trained past its budget

Pauses once for four tenths of a second, so that its longest step looks long, and takes more than that after the end of
its stream.
"""

import time

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Hoarder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.1))

    def learn(self, x):
        self.counts.index_put_((x[:, :-1].flatten(), x[:, 1:].flatten()), torch.ones(()), accumulate=True)

    def forward(self, x):
        return self.counts[x].log()


model, hoard, paused = Hoarder(), [], False
for batch in stream(16, MAX_SEQ_LEN):
    hoard.append(batch.x)
    if not paused:
        time.sleep(0.4)
        paused = True
until = time.monotonic() + 1.5
while hoard and time.monotonic() < until:
    model.learn(hoard[0])
finish(model)
