"""Verdict: out of memory|signal SIGKILL|MemoryError|asked for no data

Takes all the memory there is.
"""


hog = []
while True:
    hog.append(b"x" * 2**28)
