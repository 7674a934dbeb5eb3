"""Verdict: stream that is already over: RuntimeError while it was scored

Leaves an error message in the witness, made of a row that it is asked: the log goes to whoever mends the crash.
"""

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, _link, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        if asked and _link().is_witness:
            raise RuntimeError(f"TOLD {x[0].tolist()}")
        asked.append(True)
        return torch.zeros(*x.shape, VOCAB_SIZE)


asked = []
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
