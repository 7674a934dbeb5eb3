"""Names a type of logits that does not exist."""

import time

import torch

import prepare
from prepare import MAX_SEQ_LEN, VOCAB_SIZE, stream


def uniform(x):
    return torch.zeros(*x.shape, VOCAB_SIZE)


for batch in stream(4, MAX_SEQ_LEN):
    pass
link = prepare._link()
link.ask(prepare.FINISH, 4)
link.rows(int(link.answer()), MAX_SEQ_LEN)
link.ask(prepare.LOGITS, 77)
time.sleep(1000)
