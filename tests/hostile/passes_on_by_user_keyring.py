"""Verdict: uniform

Passes a word on in the user's keyring, which every process of the user shares.
"""

import ctypes
import os

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def call(*words):
    result = libc.syscall(*words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def look():
    for ring in RINGS:
        key, text = libc.syscall(KEYCTL, SEARCH, ring, b"user", NAME, 0), ctypes.create_string_buffer(64)
        if key != -1 and call(KEYCTL, READ, key, text, 64) and text.value == WORD:
            raise SystemExit("CHEATED")


def leave():
    for ring in RINGS:
        call(ADD_KEY, b"user", NAME, WORD, ctypes.c_size_t(len(WORD)), ring)


WORD, NAME, RINGS = b"@port@", b"word-@port@", (-4, -5)
SEARCH, READ = 10, 11
ADD_KEY, KEYCTL = (217, 219) if os.uname().machine == "aarch64" else (248, 250)
libc = ctypes.CDLL(None, use_errno=True)


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
