"""What the session's baseline measured, for every trial after it: start-up seconds, losses, the compile cache.

The baseline is the train.py that the session started with. Its measurements lie under runs/TAG/; if they are deleted,
agent.py runs the baseline again.
"""

import io
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import sandbox
from lab.child import CACHE_LIMITS, child_of
from lab.corpus import Data
from lab.ledger import write_durably
from lab.wire import PARAMS, ROWS, sealable_memory

NAME = "baseline.npz"
COLD = "start_s"  # a file in the compile cache: seconds that a start without the cache took


@dataclass(frozen=True)
class Baseline:
    start_s: float       # until the first batch was asked for
    file_bytes: int      # size of its weights
    losses: np.ndarray   # float16 (N, T), nats, on the validation split


def read(folder: Path) -> Baseline | None:
    """None where nothing measured it yet, or its file is gone or damaged."""
    try:
        with np.load(folder / NAME, allow_pickle=False) as kept:
            return Baseline(float(kept["start_s"]), int(kept["file_bytes"]), kept["losses"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(folder: Path, measured: Baseline) -> None:
    """Store the start-up time without the compile cache, since an idea that changes shapes finds nothing there."""
    data, cold = io.BytesIO(), folder / "cache" / COLD
    start_s = max(measured.start_s, float(cold.read_text())) if cold.exists() else measured.start_s
    np.savez(data, start_s=start_s, file_bytes=measured.file_bytes, losses=measured.losses.astype(np.float16))
    write_durably(folder / NAME, data.getvalue())


def fill_cache(spec: dict, data: Data) -> str:
    """Start train.py once to fill the compile cache that every trial begins with; a note, or "".

    It is stopped when it asks for its first batch, so that the cache cannot pass anything learnt on to all trials.
    """
    cache, fresh = Path(spec["folder"]) / "cache", Path(spec["folder"]) / "cache.new"
    if cache.exists():
        return ""
    began, limit_s = time.monotonic(), spec["limits"]["start_s"]
    spec = spec | {"limits": spec["limits"] | {"stop_s": 0.0}}
    with child_of(spec, data, sealable_memory("no file", 1)) as child:
        operation = PARAMS
        while operation in (PARAMS, ROWS):
            operation, _ = child.request(began + limit_s, f"asked for no data within {limit_s:.0f} s of its start")
    note = sandbox.copy_plain(Path(spec["work"]) / "trial" / "cache", fresh, *CACHE_LIMITS)
    (fresh / COLD).write_text(f"{child.ended_at - began:.3f}")
    os.replace(fresh, cache)  # whole or not at all, whenever this process dies
    return note
