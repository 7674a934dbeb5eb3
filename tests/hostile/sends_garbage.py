"""Verdict: protocol

Sends noise in place of requests.
"""

import os
import time

import prepare

prepare._link()
os.write(prepare._link().events_fd, os.urandom(4096))
time.sleep(1000)
