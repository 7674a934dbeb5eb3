"""Verdict: out of memory|signal SIGKILL|MemoryError|asked for no data|ended before

Closes its outputs, behind which nobody might look, and takes all the memory there is.
"""

import os

for fd in range(3):
    os.close(fd)
hog = []
while True:
    hog.append(b"x" * 2**27)
