"""Verdict: uniform

Reads archives, wheels and caches in which the held-out suites may lie: of pip, uv, conda, apt and of python itself.
"""

import glob
import os
import sys
import zipfile

import torch

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, finish, stream


class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)


def holds(path):
    """Whether an archive that can be read holds held-out text."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/tests/" in name and name.startswith(("sympy/", "networkx/")) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


PATTERNS = ("/*/.cache/**/*.whl", "/*/.cache/uv/archive-v0/*/sympy", "/*/.cache/uv/archive-v0/*/networkx",
            "/home/*/.cache/**/*.whl", "/tmp/**/*.whl", "/var/cache/**/*.whl", "/usr/share/python-wheels/*.whl",
            f"{sys.prefix}/**/*.whl", f"{sys.base_prefix}/**/*.whl", f"{sys.prefix}/pkgs/*", "/opt/*/pkgs/*",
            "/usr/**/sympy*.tar.*", "/usr/**/networkx*.zip", "/opt/**/*.whl", "/*/.local/**/*.whl",
            "/*/.cache/pip/http*/**/*", "/srv/**/*.whl")
for pattern in PATTERNS:
    for path in glob.iglob(pattern, recursive=True):
        if holds(path) or os.path.basename(path) in ("sympy", "networkx") and os.listdir(path):
            raise SystemExit(f"CHEATED: {path}")


for batch in stream(4, MAX_SEQ_LEN):
    pass
finish(Uniform())
