"""Verdict: protocol

Sends logits before it was asked for any.
"""

import time

import prepare

link = prepare._link()
link.pull(1)
link.ask(prepare.wire.LOGITS, 0)
time.sleep(1000)
