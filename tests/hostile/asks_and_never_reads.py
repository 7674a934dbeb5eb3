"""Verdict: trained past its budget

Asks for many rows and lets the pipe fill.
"""

import time

import prepare

for _ in range(100):
    prepare._link().pull(60_000)
time.sleep(1000)
