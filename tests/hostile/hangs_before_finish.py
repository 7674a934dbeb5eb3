"""Verdict: trained past its budget

Sleeps between the end of the stream and finish().
"""

import time

from prepare import MAX_SEQ_LEN, stream

for batch in stream(4, MAX_SEQ_LEN):
    pass
time.sleep(1000)
