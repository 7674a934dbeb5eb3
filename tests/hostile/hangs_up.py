"""Verdict: ended before it was scored

Closes both pipes and goes on living.
"""

import os
import time

import prepare
from prepare import MAX_SEQ_LEN, stream

link = prepare._link()
next(stream(1, MAX_SEQ_LEN))
os.close(link.events_fd)
link.tokens.close()
time.sleep(1000)
