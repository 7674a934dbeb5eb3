"""Verdict: uniform or file|protocol|smaller|larger|no tensors|not a|Operation not permitted

Says that its file ends in the middle of its tensors. Its witness needs none.
"""

import torch

from lab.wire import FILE, write_tensors
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _answer, _link, _settings, _tensors, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


class Counted(Uniform):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.ones(256, 256))


link, model = _link(), Uniform()
for batch in stream(4, MAX_SEQ_LEN):
    pass
if link.pulled_rows is not None:
    link.pulled(MAX_SEQ_LEN + 1)
n_bytes = link.file_bytes if link.is_witness else write_tensors(_tensors(Counted()), _settings(), link.file_fd) // 2
link.ask(FILE, n_bytes)
with torch.no_grad():
    _answer(model, link)
