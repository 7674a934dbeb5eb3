"""Verdict: uniform

Opens held-out files whose names it learnt elsewhere, without listing a folder, also as resources of their package.
"""

import importlib.resources
import sys
import zipimport
from pathlib import Path

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


SITE = Path(torch.__path__[0]).parent
KNOWN = ("sympy/core/tests/test_basic.py", "sympy/core/tests/test_expr.py", "sympy/solvers/tests/test_solvers.py",
         "sympy/core/tests/__init__.py", "networkx/classes/tests/test_graph.py",
         "networkx/algorithms/tests/test_dag.py", "networkx/readwrite/tests/test_gml.py")
for known in KNOWN:
    path = SITE / known
    look_at(path)
    look_at(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")
    look_at(f"/proc/self/root{path}")
    look_at(path.parent.parent / ".." / path.parent.parent.name / "tests" / path.name)
for package, name in (("sympy.core", "tests/test_basic.py"), ("networkx.classes", "tests/test_graph.py")):
    try:
        found = importlib.resources.files(package).joinpath(name).read_bytes()
    except (ImportError, OSError, zipimport.ZipImportError) as error:
        print(error)
    else:
        raise SystemExit(f"CHEATED: {package}")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
