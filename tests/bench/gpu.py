"""Everything that wants to be known of a GPU, in one call of under ten minutes.

    python tests/bench/gpu.py [--only STEP ...]      on a machine without a card the same, small, on the CPU

Each step is a process of its own under a time limit and prints one JSON line at once; one that fails or hangs loses
nothing else, and says why. No network. Corpus: the builtin text at a vocabulary of 8192 and rows of 2048, else random
rows where a package that prepares text is missing.
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

ON_GPU = torch.cuda.is_available() and os.environ.get("AUTORESEARCH_DEVICE") != "cpu"
DEVICE = "cuda" if ON_GPU else "cpu"
MODERN = ON_GPU and torch.cuda.get_device_capability() >= (8, 0)  # bfloat16 and variable-length attention
VOCAB, T = (8192, 2048) if ON_GPU else (512, 128)
TOTAL_S = 580.0
TRIAL_S, LONG_TRIAL_S = (20.0, 60.0) if ON_GPU else (2.0, 3.0)
PACKAGES = ("numpy", "tiktoken", "rustbpe", "filelock", "platformdirs", "safetensors", "psutil", "pynvml", "sympy",
            "networkx", "triton", "flash_attn")
PEAK_TFLOPS = {9: 989.0, 8: 312.0}  # dense bf16 of an H100 and an A100, for MFU
MB = 1 << 20


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """The best of several runs, after one that does not count."""
    best = math.inf
    for i in range(times + 1):
        wait()
        began = time.perf_counter()
        work()
        wait()
        best = best if i == 0 else min(best, time.perf_counter() - began)
    return best


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


# Steps: each returns the facts of its line ---------------------------------------------------------------------------


def facts(folder: Path) -> dict:
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
             "cores": os.cpu_count(), "missing": [name for name in PACKAGES if importlib.util.find_spec(name) is None]}
    with contextlib.suppress(ImportError):
        from lab import card, sandbox

        found |= {"sandbox": sandbox.level(), "driver": card.driver(), "for_triton": card.advice("compile", "")}
    if ON_GPU:
        about, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
        found |= {"card": about.name, "capability": f"{about.major}.{about.minor}", "total_gb": total / 1e9,
                  "free_gb": free / 1e9, "multiprocessors": about.multi_processor_count}
    return found


def check_outside(folder: Path) -> dict:
    from lab import card

    if not ON_GPU:
        return {"skipped": "no card"}
    done = subprocess.run([sys.executable, "-c", card.PROGRAM], capture_output=True, text=True)
    return {"works": done.stdout.endswith("step done\n"), "error": done.stderr[-300:]}


def check_inside(folder: Path) -> dict:
    from lab import card

    return {"card": card.check(DEVICE)}


def copies(folder: Path) -> dict:
    """GB/s of copies to and from the device, and what page-locking costs."""
    n = 256 * MB if ON_GPU else 16 * MB
    host, there = torch.zeros(n, dtype=torch.uint8), torch.zeros(n, dtype=torch.uint8, device=DEVICE)
    found = {"to_device": n / 1e9 / seconds(lambda: there.copy_(host)),
             "to_host": n / 1e9 / seconds(lambda: host.copy_(there))}
    if ON_GPU:
        began = time.perf_counter()
        locked = host.pin_memory()
        found["page_lock_s_a_gb"] = (time.perf_counter() - began) / (n / 1e9)
        found["to_device_locked"] = n / 1e9 / seconds(lambda: there.copy_(locked, non_blocking=True))
        found["to_host_locked"] = n / 1e9 / seconds(lambda: locked.copy_(there, non_blocking=True))
    return found


def _fill(tensor: torch.Tensor) -> None:
    tensor.fill_(7)
    wait()


def ipc(folder: Path) -> dict:
    """Whether another process can write into a buffer on the device that this one owns, and how soon."""
    import torch.multiprocessing as processes

    buffer = torch.zeros(64 * MB if ON_GPU else MB, dtype=torch.uint8, device=DEVICE)
    began = time.perf_counter()
    child = processes.get_context("spawn").Process(target=_fill, args=(buffer,))
    child.start()
    child.join()
    return {"shared": bool((buffer == 7).all()), "seconds_with_a_start": time.perf_counter() - began}


def load_train() -> ModuleType:
    """train.py as a module, without a referee; on a CPU with the front end of the compiler alone, which counts."""
    trial = {"vocab_size": VOCAB, "max_seq_len": T, "seed": 0, "device": DEVICE, "budget": TRIAL_S}
    os.environ["AUTORESEARCH_TRIAL"] = json.dumps(trial)
    import train

    if not ON_GPU:
        front_end = functools.partial(torch.compile, dynamic=False, backend="eager")
        train.compiled = lambda function, on_cpu=False: front_end(function)
    return train


def attention(folder: Path) -> dict:
    """The recipe's attention beside plain SDPA, outputs and gradients; milliseconds of both directions."""
    if ON_GPU and not MODERN:
        return {"skipped": "the card has no bfloat16: train.py uses SDPA there"}
    train = load_train()
    B, H, D = (4, 5, 128) if ON_GPU else (1, 2, 32)
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    q, k, v = torch.randn(3, B, T, H, D, device=DEVICE, dtype=dtype).unbind(0)
    starts = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=DEVICE) if ON_GPU else None

    def gradients(window: int, ours: bool) -> list[torch.Tensor]:
        leaves = [z.detach().clone().requires_grad_() for z in (q, k, v)]
        y = train.attend(*leaves, window, starts) if ours else plain(*leaves, window)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)]

    def plain(q, k, v, window: int) -> torch.Tensor:
        distance = torch.arange(T, device=DEVICE)[:, None] - torch.arange(T, device=DEVICE)[None, :]
        mask = (distance >= 0) & (distance <= window)
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    found = {}
    for window in (T // 8, T) if ON_GPU else (T,):
        pairs = zip(gradients(window, True), gradients(window, False), strict=True)
        found[f"largest_difference_{window}"] = max((a - b).abs().max().item() for a, b in pairs)
        for name, ours in (("ours", True), ("sdpa", False)):
            found[f"{name}_ms_{window}"] = 1e3 * seconds(lambda w=window, o=ours: gradients(w, o))
    return found


def size_of(train, scale: float):
    """The recipe at a scale of the ladder, with the tables and memory of this card."""
    if not ON_GPU:
        return train.Size(max(2, round(4 * scale)), 96, 32, 4 * T, bigram_rows=97, trigram_rows=101, whole=True)
    speed = next(least for least, s in train.SPEED_LADDER if s == scale)
    return train.fit(speed + 1, torch.cuda.get_device_properties(0).total_memory)


def steps(scale: float, whole: bool = False, rows_share: float = 1.0, fa4: bool = False) -> dict:
    """Compile and 20 steps: frames after warm-up, tokens/s, MFU, peak memory beside the estimate."""
    if fa4:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl("FA4")
    train, began = load_train(), time.perf_counter()
    size, dtype = size_of(train, scale), torch.bfloat16 if MODERN else torch.float32
    torch.set_float32_matmul_precision("high")
    compiled = train.compiled
    train.compiled = (lambda function, on_cpu=False: function) if whole else compiled
    with torch.device(DEVICE):
        model = train.GPT(size, VOCAB, dtype).eval()
    train.compiled = compiled
    if whole:
        model.forward = compiled(model.forward)
    rows, parts = train.fit_rows(model, size)
    rows, optimizer = max(1, round(rows * rows_share)), train.Optimizer(model)
    speed_of(model, optimizer, rows, 2)  # compiles other shapes and meets state that exists
    return {"compile_s": time.perf_counter() - began, "rows": rows, "parts": parts,
            **speed_of(model, optimizer, rows, 20 if ON_GPU else 3), **memory_of(train, model, size, rows)}


def frames() -> int:
    counters = sys.modules.get("torch._dynamo.utils")
    return counters.counters["frames"]["total"] if counters else 0


def speed_of(model, optimizer, rows: int, n_steps: int) -> dict:
    x, before = torch.randint(VOCAB, (rows, T), device=DEVICE), frames()
    gc.disable()
    wait()
    began = time.perf_counter()
    for step in range(n_steps):
        model(x, x).backward()
        optimizer.step(0.0, step)
        model.zero_grad()
    wait()
    taken = time.perf_counter() - began
    n_matrix = sum(p.numel() for p in model.blocks.parameters()) + model.head.numel()
    n_tokens = rows * T * n_steps
    found = {"tokens_a_s": n_tokens / taken, "frames": before, "frames_after_warm_up": frames() - before}
    if ON_GPU:
        peak = PEAK_TFLOPS.get(torch.cuda.get_device_capability()[0])
        found["mfu_without_attention"] = peak and 6 * n_matrix * n_tokens / taken / 1e12 / peak
    return found


def memory_of(train, model, size, rows: int) -> dict:
    layer_bytes = model.dtype.itemsize * train.LAYER_NUMBERS * size.layers * size.width
    estimate = rows * T * (layer_bytes + train.LOGIT_BYTES * VOCAB)
    peak = torch.cuda.max_memory_allocated() if ON_GPU else 0
    return {"estimate_of_activations_gb": estimate / 1e9, "peak_gb": peak / 1e9}


def corpus(folder: Path):
    """A prepared corpus below `folder`, made by the first step that needs it."""
    import numpy as np

    from lab.corpus import Data
    from lab.ledger import SetupError

    where = folder / "rows"
    if (where / "manifest.json").exists():
        return Data.load(where)
    if ON_GPU:
        with contextlib.suppress(ImportError, SetupError):
            from lab import corpus as room

            room.SIZES["builtin"] = room.LARGE
            data = room.open_data("builtin")
            where.symlink_to(data.folder)
            return data
    where.mkdir()
    rows = {"train": 4096, "val": 256, "test": 64} if ON_GPU else {"train": 512, "val": 64, "test": 16}
    rng = np.random.default_rng(0)
    for split, n in rows.items():
        rng.integers(0, VOCAB - 1, (n, T + 1)).astype(np.uint16).tofile(where / f"{split}.bin")
    write_tokenizer(where / "tokenizer.json")
    manifest = {"name": "random", "source": str(where), "shards": 0, "read": "", "hash": "0" * 64, "rows": rows,
                "vocab_size": VOCAB, "max_seq_len": T, "eval_rows": {split: rows[split] for split in ("val", "test")}}
    (where / "manifest.json").write_text(json.dumps(manifest))
    return Data.load(where)


def write_tokenizer(path: Path) -> None:
    import base64

    words = [bytes([i]) for i in range(256)] + [bytes([i // 256, i % 256]) for i in range(VOCAB - 257)]
    path.write_text(json.dumps({"pattern": r"\s+|\S+", "tokens": [base64.b64encode(w).decode() for w in words]}))


def trial(folder: Path, budget_s: float, seed: int = 0, first: bool = False, narrower: bool = False) -> dict:
    """A real trial of train.py, with its witness: seconds of each phase."""
    from lab import runner

    data, code = corpus(folder), (ROOT / "train.py").read_text()
    if narrower:  # another model: nothing that was compiled fits
        code = code.replace("GPU_WIDTH = 640", "GPU_WIDTH = 512").replace("CPU_WIDTH = 96", "CPU_WIDTH = 64")
    (folder / "runs").mkdir(exist_ok=True)
    done = runner.run(code, data=data, seed=seed, budget_s=budget_s, folder=folder / "runs", is_baseline=first,
                      last_try=True)
    dead_s = done.total_seconds - done.train_seconds
    return {"val_bpb": done.val_bpb, "reason": done.reason, "witnessed": done.witnessed, "dead_s": dead_s,
            "phases": done.phases, "tokens_m": done.tokens_m, "memory_gb": done.memory_gb, "note": done.note,
            "data": data.name, "log": "" if done.val_bpb else done.log[-500:]}


def crowded(folder: Path) -> dict:
    """Rows that fit where other programs hold the card but for 6 and 3 GB."""
    if not ON_GPU:
        return {"skipped": "no card"}
    found = {}
    for left_gb in (6, 3):
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        held = torch.empty(max(0, int(free - left_gb * 1e9)), dtype=torch.uint8, device="cuda")
        done = subprocess.run([sys.executable, __file__, "--step", "smallest", "--folder", str(folder)],
                              capture_output=True, text=True)
        found[f"left_{left_gb}_gb"] = last_json(done.stdout) or done.stderr[-300:]
        del held
    return found


STEPS: dict[str, tuple[float, Callable[[Path], dict]]] = {  # seconds at most, and the step
    "facts": (40, facts),
    "check outside": (60, check_outside),
    "check inside": (90, check_inside),
    "copies": (30, copies),
    "ipc": (30, ipc),
    "attention": (60, attention),
    "20 steps at scale 1.0": (75, lambda folder: steps(1.0)),
    "20 steps at scale 0.8": (60, lambda folder: steps(0.8)),
    "20 steps at scale 0.55": (60, lambda folder: steps(0.55)),
    "trial, cold": (120, lambda folder: trial(folder, TRIAL_S, first=True)),
    "trial, warm": (90, lambda folder: trial(folder, TRIAL_S)),
    "trial, width changed": (90, lambda folder: trial(folder, TRIAL_S, narrower=True)),
    "crowded": (60, crowded),
    "compiled whole": (90, lambda folder: steps(1.0, whole=True)),
    "half the rows": (60, lambda folder: steps(1.0, rows_share=0.5)),
    "FlashAttention-4": (60, lambda folder: steps(1.0, fa4=True)),
    "long trial": (150, lambda folder: trial(folder, LONG_TRIAL_S, seed=1)),
    "long trial again": (150, lambda folder: trial(folder, LONG_TRIAL_S, seed=1)),
}


# Running them --------------------------------------------------------------------------------------------------------


def last_json(text: str) -> dict | None:
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    return None


def run(name: str, folder: Path, limit_s: float) -> dict:
    """One step to its end or limit; its facts, or why there are none. Its whole process group ends."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = f"no end within {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        out.seek(0)
        err.seek(0)
        found, error = last_json(out.read().decode("utf-8", "replace")), err.read()[-600:].decode("utf-8", "replace")
    result = found if code == 0 and found is not None else {"failed": str(code), "error": error}
    return {"step": name, "seconds": round(time.monotonic() - began, 1), **result}


def rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", metavar="STEP", help="these steps alone: " + ", ".join(STEPS))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        os.environ["AUTORESEARCH_CACHE"] = str(options.folder / "cache")
        work = {"smallest": lambda folder: steps(0.55)}.get(options.step) or STEPS[options.step][1]
        print(json.dumps(rounded(work(options.folder))), flush=True)
        return
    ends_at = time.monotonic() + TOTAL_S
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or STEPS:
            limit_s = min(STEPS[name][0], ends_at - time.monotonic())
            result = {"step": name, "failed": "no time left"} if limit_s < 5 else run(name, Path(folder), limit_s)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
