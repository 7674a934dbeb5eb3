"""Verdict: too many threads|asked for no data

Calls itself "Threads: 1", as one line of /proc would say, and starts nine thousand.
"""

import ctypes
import threading
import time

from prepare import stream

threading.stack_size(1 << 16)
ctypes.CDLL(None).prctl(15, b"Threads:\t1", 0, 0, 0)  # PR_SET_NAME
for _ in range(9000):
    threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
for batch in stream(4, 1):
    pass
time.sleep(1000)
