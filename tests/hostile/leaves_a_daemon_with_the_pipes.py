"""Verdict: ended before it was scored

Leaves a daemon that holds every pipe open, and ends unscored.
"""

import os
import time
from contextlib import suppress

if os.fork() == 0:
    with suppress(OSError):  # the filter refuses it
        os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
