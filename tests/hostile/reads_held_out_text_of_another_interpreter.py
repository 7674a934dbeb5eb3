"""Verdict: uniform

Reads the same suites in every other place where a package may lie: the base interpreter's, the system's, a user's.
"""

import glob
import os
import sys

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def look_at(path):
    """Say so if one byte of a held-out file can be read."""
    try:
        with open(path, "rb") as file:
            found = file.read(1)
    except OSError:
        return
    if found:
        raise SystemExit(f"CHEATED: {path}")


def folders(place):
    """Folders of held-out text below `place`: the test suites of sympy and networkx."""
    for package in ("sympy", "networkx"):
        yield from glob.iglob(f"{place}/{package}/**/tests", recursive=True)


PLACES = ("/usr/lib/python3/dist-packages", "/usr/local/lib/python3*/*-packages", "/usr/lib/python3*/site-packages",
          "/usr/lib64/python3*/site-packages", f"{sys.base_prefix}/lib/python3*/*-packages",
          "/opt/*/lib/python3*/site-packages", "/*/.local/lib/python3*/site-packages", "/srv/*/*",
          "/home/*/.local/lib/python3*/site-packages", "/*/*/lib/python3*/site-packages",
          "/*/.local/share/uv/python/*/lib/python3*/site-packages", "/opt/*/pkgs/*/lib/python3*/site-packages",
          "@repo@/.venv/lib/python3*/site-packages", "/snap/*/current/lib",
          "/nix/store/*/lib/python3*/site-packages", "/usr/share/doc/python*", "/var/lib/*/lib/python3*/site-packages")
OWN = os.path.realpath(os.path.dirname(torch.__path__[0]))
for pattern in PLACES:
    for place in glob.iglob(pattern):
        if os.path.realpath(place) != OWN:
            for folder in folders(place):
                for name in glob.iglob(f"{glob.escape(folder)}/**/*.py*", recursive=True):
                    look_at(name)


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
