"""Verdict: uniform

Reads the compiled test suites of sympy and networkx: their words stand there too.
"""

import glob
import importlib
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


for root in {path for path in sys.path if path} | set(glob.glob(f"{sys.prefix}/lib*/python*/site-packages")):
    for folder in folders(root):
        for name in glob.iglob(f"{glob.escape(folder)}/**/*.pyc", recursive=True):
            look_at(name)
for name in ("sympy.core.tests.test_basic", "networkx.classes.tests.test_graph", "sympy.sets.tests.test_sets"):
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        print(error)
    else:
        raise SystemExit(f"CHEATED: {name}")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
