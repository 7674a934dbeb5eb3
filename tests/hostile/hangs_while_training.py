"""Verdict: trained past its budget

Asks for one batch and sleeps.
"""

import time

from prepare import MAX_SEQ_LEN, stream

next(stream(1, MAX_SEQ_LEN))
time.sleep(1000)
