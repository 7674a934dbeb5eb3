"""Verdict: protocol

Asks for more training rows once its file is whole.
"""

import torch

from lab.wire import FILE, PULL, write_tensors
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _answer, _link, _settings, _tensors, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


link, model = _link(), Uniform()
for batch in stream(4, MAX_SEQ_LEN):
    pass
if link.pulled_rows is not None:
    link.pulled(MAX_SEQ_LEN + 1)
link.ask(FILE, write_tensors(_tensors(model), _settings(), link.file_fd))
link.ask(PULL, 4)
with torch.no_grad():
    _answer(model, link)
