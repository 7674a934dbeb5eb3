"""Whether the GPU works where trials run, inside the sandbox; asked once, before a session prepares its data.

Promises: a card that fails there is one line that says what to do, never a night on the CPU. It takes some seconds on
a GPU and starts no process for another device. It says nothing of speed or memory.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from lab import sandbox
from lab.ledger import one_line

CHECK_S = 240.0    # imports from a cold disk and the first compilation; usually 10 s
DRIVER = 580       # the oldest NVIDIA driver that CUDA 13 runs on, which the pinned torch is built for
UVM = Path("/dev/nvidia-uvm")

# Each step says its name before it begins, so the last name is the step that failed.
PROGRAM = """\
import torch

print("step build", flush=True)
assert torch.version.cuda, f"torch {torch.__version__} is built without CUDA"
print("step cuda", flush=True)
x = torch.ones(256, 256, device="cuda")
print("step matmul", flush=True)
assert (x @ x)[0, 0].item() == 256
print("step compile", flush=True)
assert torch.compile(lambda x: x.sin() + 1)(x).mean().item() > 1
print("step done", flush=True)
"""


def check(device: str, program: str = PROGRAM) -> str:
    """What the user must do before trials can run on this device; "" where they can."""
    if device in ("cpu", "mps"):
        return ""
    if device != "cuda":
        return (f"AUTORESEARCH_DEVICE={one_line(device, 40)} names no device: say cuda, mps or cpu, and choose among "
                "several cards by CUDA_VISIBLE_DEVICES")
    make_uvm()
    step, error = try_out(program)
    return "" if step == "done" else f"the GPU cannot be used: {advice(step, error)}"


def make_uvm() -> None:
    """Let a process outside the sandbox create /dev/nvidia-uvm: no trial may, and CUDA does not start without it."""
    if sys.platform != "linux" or UVM.exists() or Path("/dev/dxg").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-c", "import torch; torch.cuda.init()"], folder, None)


def try_out(program: str) -> tuple[str, str]:
    """(the last step that began inside the sandbox, the error that ended it)."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (Path(folder) / "check.py").write_text(program)
        command = sandbox.command(folder, str(cache), [sys.executable, "check.py"])
        out = _run(command, folder, sandbox.environment(folder, str(cache)))
    steps = re.findall(r"(?m)^step (\w+)$", out)
    lines = [line for line in out.splitlines() if line.strip() and not line.startswith("step ")]
    return (steps or ["start"])[-1], one_line(lines[-1] if lines else "it said nothing", 200)


def _run(command: list[str], folder: str, environment: dict[str, str] | None) -> str:
    """Run a command to its end or CHECK_S; all that it printed. Nothing that it started is left."""
    log = Path(folder) / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, start_new_session=True)
        try:
            process.wait(CHECK_S)
        except subprocess.TimeoutExpired:
            out.write(f"it took longer than {CHECK_S:.0f} s\n".encode())
        finally:
            with contextlib.suppress(ProcessLookupError):  # namespaces, where there are any, end with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return log.read_text(errors="replace")


def advice(step: str, error: str) -> str:
    """What to do about a step that failed with this error."""
    if step == "start":
        return f"torch does not start inside the sandbox ({error})"
    if step == "build":
        return f"{error}: install the build for CUDA, or set AUTORESEARCH_DEVICE=cpu"
    if step == "compile":
        return f"Triton cannot compile ({missing_for_triton() or error})"
    return f"{wrong_with_cuda(error)} ({error})"


def missing_for_triton() -> str:
    """The part of its tool chain that this machine lacks, "" where none."""
    compilers = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    if not any(name and shutil.which(name) for name in compilers):
        return "no C compiler: install gcc, or set CC"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python.h: install python3-dev, or a Python of uv's"
    return ""


def wrong_with_cuda(error: str) -> str:
    """The likeliest reason why CUDA does not start, by what can be seen from outside."""
    if sys.platform == "linux" and not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "no NVIDIA card is seen here: look at nvidia-smi, or set AUTORESEARCH_DEVICE=cpu"
    if (version := driver()) and version < DRIVER:
        return f"its driver {version} is older than {DRIVER}, which this torch needs: update the driver"
    if not UVM.exists() and not Path("/dev/dxg").exists():
        return "there is no /dev/nvidia-uvm: run `nvidia-modprobe -u -c 0` once as root"
    if os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or Path("/tmp/nvidia-mps").exists():
        return "an MPS server runs, which no sandbox reaches: end it by `echo quit | nvidia-cuda-mps-control`"
    if re.search("busy|unavailable|exclusive", error):
        return "another program holds it in exclusive mode: end that one, or `nvidia-smi -c DEFAULT`"
    if "memory" in error:
        return "its memory is taken by other programs: see nvidia-smi"
    return "CUDA does not start inside the sandbox: look at nvidia-smi"


@functools.cache
def driver() -> int:
    """The major version of the NVIDIA driver; 0 where it cannot be read."""
    path = Path("/sys/module/nvidia/version")
    found = re.match(r"(\d+)\.", path.read_text()) if path.exists() else None
    return int(found[1]) if found else 0
