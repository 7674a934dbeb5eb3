"""Verdict: trained past its budget

Hangs, and ignores every signal that can be ignored.
"""

import signal
import time

from prepare import MAX_SEQ_LEN, stream

for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
next(stream(1, MAX_SEQ_LEN))
time.sleep(1000)
