"""Verdict: asked for no data

Sends three of five bytes, and waits.
"""

import os
import time

import prepare

os.write(prepare._link().events_fd, b"ppp")
time.sleep(1000)
