"""Verdict: uniform or file|protocol|smaller|larger|no tensors|not a

Says that its file has one byte, less than a header. Its witness needs none.
"""

import torch

from lab.wire import FILE
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _answer, _link, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link, model = _link(), Uniform()
for batch in stream(4, MAX_SEQ_LEN):
    pass
if link.pulled_rows is not None:
    link.pulled(MAX_SEQ_LEN + 1)
n_bytes = 1
link.ask(FILE, n_bytes)
with torch.no_grad():
    _answer(model, link)
