"""What the session's baseline measured, for every trial after it: start-up seconds and the loss of each token.

It was measured with the train.py that the user started with, before a model had any say. It is kept under runs/TAG/;
what is gone is measured again (agent.py).
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.ledger import write_durably


@dataclass(frozen=True)
class Baseline:
    start_s: float       # until the first batch was asked for
    file_bytes: int      # of what it had learnt
    losses: np.ndarray   # float16 (N, T), nats, on the validation split


def read(folder: Path) -> Baseline | None:
    """None where nothing measured it yet, or its file is gone or damaged."""
    try:
        with np.load(folder / "baseline.npz", allow_pickle=False) as kept:
            return Baseline(float(kept["start_s"]), int(kept["file_bytes"]), kept["losses"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(folder: Path, measured: Baseline) -> None:
    data = io.BytesIO()
    np.savez(data, start_s=measured.start_s, file_bytes=measured.file_bytes, losses=measured.losses.astype(np.float16))
    write_durably(folder / "baseline.npz", data.getvalue())
