"""Verdict: protocol

Asks for four thousand million rows.
"""

import time

import prepare

prepare._link().pull(2**32 - 1)
time.sleep(1000)
