"""Verdict: too many processes

Forks and forks.
"""

import os
import time

while True:
    try:
        os.fork()
    except OSError:
        pass
    time.sleep(0.01)
