"""Verdict: asked for no data

Never asks for data.
"""

import time

time.sleep(1000)
