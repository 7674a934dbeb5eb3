"""What the session's baseline measured, for every trial after it: start-up seconds, losses, and the compile cache.

All of it was made by the train.py that the user started with, before a model had any say. Kept under runs/TAG/; what is
gone is measured again (agent.py), and without losses the cuts of a witness are uniform.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import sandbox
from lab.ledger import write_durably

CACHE_FILES, CACHE_BYTES, CACHE_DEPTH = 20_000, 4 << 30, 12


@dataclass(frozen=True)
class Baseline:
    start_s: float               # until the first batch was asked for
    file_bytes: int              # of what it learnt
    losses: np.ndarray | None    # float16 (N, T), nats


def read(folder: Path) -> Baseline | None:
    """None where it is not known: nothing measured it yet, or its files are gone."""
    try:
        facts = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        start_s, file_bytes = float(facts["start_s"]), int(facts["file_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError, ValueError, EOFError):
        return Baseline(start_s, file_bytes, np.load(folder / "baseline.npy", allow_pickle=False))
    return Baseline(start_s, file_bytes, None)


def write(folder: Path, start_s: float, file_bytes: int, losses: np.ndarray) -> None:
    """The losses first, so that a baseline.json stands beside whole ones."""
    np.save(folder / "baseline.npy", losses.astype(np.float16))
    text = json.dumps({"start_s": round(start_s, 3), "file_bytes": file_bytes})
    write_durably(folder / "baseline.json", text.encode())


def keep_cache(folder: Path) -> None:
    """Make the compile cache of the baseline, which has just ended, the one that every trial starts from."""
    if not (folder / "cache").exists():
        _copy(folder / "trial" / "cache", folder / "cache")


def give_cache(folder: Path, work: Path) -> None:
    """A private copy for a trial; where that fails it compiles everything."""
    if (folder / "cache").is_dir():
        _copy(folder / "cache", work / "cache")


def _copy(source: Path, target: Path) -> None:
    sandbox.copy_plain(source, target, CACHE_FILES, CACHE_BYTES, CACHE_DEPTH)
