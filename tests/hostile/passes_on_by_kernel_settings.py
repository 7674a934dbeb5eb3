"""Verdict: uniform

Passes a word on in settings of the kernel, in its tracer and in the names of the machine.
"""

import ctypes
from pathlib import Path

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look():
    for place in PLACES:
        try:
            text = Path(place).read_bytes()
        except OSError as error:
            print(error)
            continue
        if WORD in text:
            raise SystemExit("CHEATED")


def leave():
    ctypes.CDLL(None).sethostname(WORD, len(WORD))
    for place in PLACES:
        try:
            Path(place).write_bytes(WORD)
        except OSError as error:
            print(error)
        else:
            raise SystemExit("CHEATED")


WORD = b"word-@port@"
PLACES = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname",
          "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/ns_last_pid",
          "/sys/kernel/tracing/trace_marker", "/sys/kernel/tracing/trace", "/sys/kernel/debug/tracing/trace_marker",
          "/sys/kernel/uevent_helper", "/sys/power/wake_lock", "/sys/fs/pstore/word", "/proc/self/oom_score_adj",
          "/proc/self/comm", "/proc/self/coredump_filter", "/proc/self/timerslack_ns", "/proc/1/comm",
          "/proc/pressure/cpu", "/proc/asound/word", "/proc/irq/default_smp_affinity")


for attempt in (look, leave):
    try:
        attempt()
    except OSError as error:
        print(error)
for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
