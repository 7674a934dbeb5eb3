"""Verdict: too many processes|asked for no data

Closes its outputs, behind which nobody might look, and forks until it is stopped.
"""

import os
import time

for fd in range(3):
    os.close(fd)
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
    except OSError:
        time.sleep(0.1)
