"""Verdict: differs everywhere|sees the future

Goes on training in a second thread while the first one answers without a pause.
"""

import threading

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


model = Hoarder()
hoard = [batch.x for batch in stream(16, MAX_SEQ_LEN)]
threading.Thread(target=lambda: [model.learn(x) for x in hoard], daemon=True).start()
finish(model)
