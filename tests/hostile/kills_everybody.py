"""Verdict: ended before it was scored|No such process|Operation not permitted

Kills every process it may.
"""

import os

os.kill(-1, 9)
