"""Whether the GPU works where trials run, inside the sandbox; asked once, before a session.

Promises: a card that fails there gives one line that says what to do, never a night on the CPU. The check takes some
seconds on a GPU and starts no process for other devices. It does not measure speed or memory.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from lab import sandbox
from lab.ledger import SetupError, one_line

CHECK_S = 240.0    # imports from a cold disk and the first compilation; usually 10 s
DRIVER = 580       # the oldest that runs CUDA 13, which the pinned torch is built for
DEV = Path("/dev")

# Each step says its name before it begins, so the last name is the step that failed.
PROGRAM = """\
import torch

print("step build", flush=True)
assert torch.version.cuda, f"torch {torch.__version__} is built without CUDA"
print("step cuda", flush=True)
x = torch.ones(256, 256, device="cuda")
assert (x @ x)[0, 0].item() == 256
print("step compile", flush=True)
assert torch.compile(lambda x: x.sin() + 1)(x).mean().item() > 1
print("card", torch.cuda.get_device_name())
print("step done", flush=True)
"""


def check(device: str, program: str = PROGRAM) -> str:
    """The name of the card, as torch says it; "" for another device. Raises SetupError where no trial can run on it."""
    if device in ("cpu", "mps"):
        return ""
    if device != "cuda":
        raise SetupError(f"AUTORESEARCH_DEVICE={one_line(device, 40)} names no device: say cuda, mps or cpu, and "
                         "choose among several cards by CUDA_VISIBLE_DEVICES")
    with tempfile.TemporaryDirectory() as folder:
        if sys.platform == "linux" and not (DEV / "nvidia-uvm").exists() and not (DEV / "dxg").exists():
            # CUDA makes this file outside the sandbox; no trial may, and CUDA does not start without it.
            _run([sys.executable, "-c", "import torch; torch.cuda.init()"], folder, dict(os.environ))
        (Path(folder) / "check.py").write_text(program)
        command = sandbox.command(folder, folder, [sys.executable, "check.py"])
        out = _run(command, folder, sandbox.environment(folder, folder))
    steps = ["start", *re.findall(r"(?m)^step (\w+)$", out)]
    if steps[-1] == "done":
        return re.search(r"(?m)^card (.*)$", out)[1]
    lines = ["it said nothing", *(line for line in out.splitlines() if line.strip() and line[:5] != "step ")]
    raise SetupError(f"the GPU cannot be used: {advice(steps[-1], one_line(lines[-1], 200))}")


def _run(command: list[str], folder: str, environment: dict[str, str]) -> str:
    """Run a command to its end or CHECK_S; all that it printed."""
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        try:
            subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                           timeout=CHECK_S, check=False)
        except subprocess.TimeoutExpired:  # namespaces, where there are any, end with it
            out.write(f"it took longer than {CHECK_S:.0f} s\n")
        out.seek(0)
        return out.read()


def advice(step: str, error: str) -> str:
    """What to do about a step that failed: the first line of the table that holds."""
    on_windows = (DEV / "dxg").exists()  # WSL shows the card under this name
    no_card = sys.platform == "linux" and not on_windows and not any(DEV.glob("nvidia[0-9]*"))
    no_memory_file = not on_windows and not (DEV / "nvidia-uvm").exists()
    has_mps = "CUDA_MPS_PIPE_DIRECTORY" in os.environ or Path("/tmp/nvidia-mps").exists()
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    compilers = [name for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name and shutil.which(name)]
    table = (
        (step == "start", "torch does not start inside the sandbox"),
        (step == "build", "install the build for CUDA, or set AUTORESEARCH_DEVICE=cpu"),
        (step == "compile" and not compilers, "Triton finds no C compiler: install gcc, or set CC"),
        (step == "compile" and not headers.exists(), "Triton finds no Python.h: install python3-dev, or uv's Python"),
        (step == "compile", "Triton cannot compile"),
        (no_card, "no NVIDIA card is seen here: look at nvidia-smi, or set AUTORESEARCH_DEVICE=cpu"),
        (0 < driver() < DRIVER, f"driver {driver()} is older than {DRIVER}, which this torch needs: update the driver"),
        (no_memory_file, "there is no /dev/nvidia-uvm: run `nvidia-modprobe -u -c 0` once as root"),
        (has_mps, "an MPS server runs, which no sandbox reaches: end it by `echo quit | nvidia-cuda-mps-control`"),
        (re.search("busy|unavailable|exclusive", error),
         "another program holds it in exclusive mode: end that one, or `nvidia-smi -c DEFAULT`"),
        ("memory" in error, "its memory is taken by other programs: see nvidia-smi"),
        (True, "CUDA does not start inside the sandbox: look at nvidia-smi"),
    )
    return next(f"{words} ({error})" for holds, words in table if holds)


def driver() -> int:
    """The major version of the NVIDIA driver; 0 where there is none."""
    path = Path("/sys/module/nvidia/version")
    return int(path.read_text().partition(".")[0]) if path.exists() else 0
