"""The slots of this machine: all of it, shares of its cores, or its cards one by one.

Cards that would not measure alike are refused: what one of them found, the next could not repeat.
"""

import glob
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import machine
from lab.ledger import SetupError, one_line
from lab.runner import Slot

TOLERANCE = 0.03  # by which the speeds of cards in one session may differ
SPEED_S = 240.0   # for torch to start and to multiply on all cards at once
# The fastest of twelve rounds: the clock of a cold card rises during the first ones.
SPEED = """\
import time, torch
a, rounds = torch.randn(8192, 8192, device="cuda", dtype=torch.half), []
for _ in range(12):
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    rounds.append(time.perf_counter() - began)
print(torch.cuda.get_device_name(), 40 * 8192**3 / min(rounds) / 1e12, sep="\\n")
"""


def slots_here(n_slots: int, n_gpus: int, device: str) -> list[Slot]:
    """The slots that a command line asks for; n_gpus 0: all. Raises SetupError."""
    if n_gpus == n_slots == 1:
        return [Slot()]
    if device == "cuda" and n_slots > 1:
        raise SetupError("--slots shares the cores of a machine without a GPU: say --gpus N here")
    if device != "cuda" and n_gpus != 1:
        raise SetupError(f"--gpus needs CUDA, and trials run on {device} here: say --slots N")
    cards = gpus(n_gpus) if device == "cuda" else [""] * n_slots
    if len(cards) == 1:
        return [Slot()]
    cores = sorted(os.sched_getaffinity(0), key=core_place) if sys.platform == "linux" else []
    share = len(cores) // len(cards)
    if cores and not share and device != "cuda":
        raise SetupError(f"--slots {n_slots} needs as many cores, and there are {len(cores)}")
    files = dict(machine.cards()) if device == "cuda" else {}
    others = glob.glob("/dev/nvidia[0-9]*") if files else []
    return [Slot(n, f"{'GPU' if card else 'slot'} {n}", tuple(cores[n * share:(n + 1) * share]), card,
                 tuple(path for path in others if path != files.get(card)))
            for n, card in enumerate(cards)]


def core_place(core: int) -> list[int]:
    """Processor, physical core and number: a slot gets whole cores, with both their threads."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    names = ("physical_package_id", "core_id")
    return [*(int((folder / name).read_text()) for name in names if (folder / name).exists()), core]


def gpus(n: int) -> list[str]:
    """UUIDs of n cards, 0 for all, that are equally fast now. Raises SetupError."""
    found = [uuid for uuid, _ in machine.cards()][: n or None]
    if len(found) < n:
        raise SetupError(f"--gpus {n}: there are {len(found)} here")
    with ThreadPoolExecutor(len(found)) as pool:
        measured = list(pool.map(speed_of, found))
    if len(fit := alike(measured)) < len(found):
        listed = "; ".join(f"{n}: {name}, {speed:.0f} TFLOP/s" for n, (name, speed) in enumerate(measured))
        raise SetupError(f"these cards would not measure alike ({listed}): set CUDA_VISIBLE_DEVICES="
                         f"{','.join(map(str, fit))}, which may run together")
    return found


def speed_of(uuid: str) -> tuple[str, float]:
    """(name, TFLOP/s in half precision) of a card. Raises SetupError where it does not multiply."""
    try:
        done = subprocess.run([sys.executable, "-c", SPEED], env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SPEED_S, check=True)
    except subprocess.SubprocessError as error:
        why = one_line(getattr(error, "stderr", "") or str(error), 2000)[-200:]
        raise SetupError(f"{uuid} does not work: {why}; look at nvidia-smi, or leave it out with "
                         "CUDA_VISIBLE_DEVICES") from None
    name, speed = done.stdout.splitlines()[-2:]
    return name, float(speed)


def alike(measured: Sequence[tuple[str, float]]) -> list[int]:
    """The largest group of (name, speed) with one name and speeds within the tolerance, by number."""
    groups = [[n for n, (name, speed) in enumerate(measured)
               if name == like and slowest <= speed <= (1 + TOLERANCE) * slowest]
              for like, slowest in measured]
    return max(groups, key=len)
