"""Verdict: signal 40

Dies by a real-time signal, which Python's list of signals does not know.
"""

import os

os.kill(os.getpid(), 40)
