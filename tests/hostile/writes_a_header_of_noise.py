"""Verdict: uniform or file|protocol|smaller|larger|no tensors|not a|header|does not run

Writes noise where the header of its file belongs.
"""

import mmap
import struct

import torch

from lab.wire import FILE
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _answer, _link, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def write(header, n_bytes):
    """A header of any content before n_bytes."""
    length = len(header) if isinstance(header, bytes) else header
    content = header if isinstance(header, bytes) else b""
    with mmap.mmap(link.file_fd, 1 << 20) as memory:
        data = struct.pack("<Q", length) + content
        memory[: len(data)] = data
    return 8 + len(content) + n_bytes


link, model = _link(), Uniform()
for batch in stream(4, MAX_SEQ_LEN):
    pass
if link.pulled_rows is not None:
    link.pulled(MAX_SEQ_LEN + 1)
n_bytes = 8 if link.is_witness else write(b"\xff\0{" * 1000, 4096)
link.ask(FILE, n_bytes)
with torch.no_grad():
    _answer(model, link)
