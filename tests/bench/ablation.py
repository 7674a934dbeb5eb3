"""What each part of train.py gives: every part switched off in a copy, at equal time, over several seeds.

    python tests/bench/ablation.py [--steps 750] [--seeds 3] [--workers 2] [--only NAME ...]

Prints part, cost of a step without it, val_bpb without it, delta (positive: the part pays) and its standard error.
Equal time without a clock: a copy whose step takes 0.9 of the time gets 1/0.9 of the steps. Steps are timed in turns,
beside those of the whole train.py, so a busy machine makes the table late, not wrong. One thread a worker; builtin
corpus.
750 steps are what a minute of two idle cores trains.
"""

import argparse
import math
import os
import statistics
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab.corpus import Data, open_data  # noqa: E402
from prepare import Batch  # noqa: E402

ROWS = 4             # of a step: the CPU's 1024 tokens
EVAL_ROWS = 256

FULL = "everything"
PARTS: dict[str, list[tuple[str, str]]] = {  # part: replacements that switch it off; a knob is (NAME, value)
    FULL: [],
    "induction": [("[Ngrams(2, size.pair_rows, C, dtype), Induction(vocab_size, C)]",
                   "[Ngrams(2, size.pair_rows, C, dtype)]")],
    "table of pairs": [("*(source(history) for source in self.sources)",
                        "0 * self.sources[0](history), self.sources[1](history)")],
    "value embeddings": [("range((L - 1) % VALUE_EVERY, L, VALUE_EVERY)", "[]")],
    "norm of each head": [("norm(attend(q, k, v, self.window, starts))", "attend(q, k, v, self.window, starts)")],
    "gate of each head": [(" * self.gate(x, len(values), 0)", " * (1 + 0 * self.gate(x, len(values), 0))")],
    "norm of an MLP's output": [("h + norm(linear(hidden, self.down))", "h + linear(hidden, self.down)")],
    "relu's shift": [("RELU_SHIFT", "0.0")],
    "NorMuon variance step": [("power.clamp_min(1e-10).rsqrt()", "1.0")],
    "cautious decay (plain)": [("(update * weight > 0).to(weight.dtype)", "1.0")],
    "matrix decay": [("MATRIX_DECAY", "0.0")],
    "embeddings in every layer, at first": [("SHARE_INIT", "0.0")],
    "learnt residual weights": [("RESIDUAL_LR", "0.0")],
    "relu squared (relu)": [(" - RELU_SHIFT).square()", " - RELU_SHIFT)")],
    "q and k norm": [("norm(rotate(qkv[:, :, :2], turns)) * QK_SCALE", "rotate(qkv[:, :, :2], turns)")],
    "q and k times 1.15": [("QK_SCALE", "1.0")],
    "no softcap (15)": [("        if self.tops is not None:\n            logits",
                         "        if True:\n            logits")],
    "no gate of the shares": [(" if size.whole else None\n        self.qkv", "\n        self.qkv")],
    "no shares of the top layers": [
        ("(GPU_TOP_LAYERS)) if size.whole else None", "(GPU_TOP_LAYERS))"),
        ("        if self.tops is not None:\n            logits", "        if False:\n            logits")],
    "smaller first matrices": [("INIT_SCALE", "1.0")],
    "momentum warm-up": [("MOMENTUM_START", "0.95")],
    "long warm-down (40 %)": [("MATRIX_WARMDOWN", "0.4"), ("ADAM_WARMDOWN", "0.4")],
    "long rotary base (10 000)": [("ROPE_BASE", "10_000.0")],
}


def without(code: str, replacements: list[tuple[str, str]]) -> str:
    """`code` with a part switched off; fails when a text to replace is not there exactly once."""
    for old, new in replacements:
        if old.isidentifier() and old.isupper():
            lines = code.splitlines(keepends=True)
            at = [i for i, line in enumerate(lines) if line.startswith(f"{old} = ")]
            assert len(at) == 1, f"{old} is assigned {len(at)} times"
            lines[at[0]] = f"{old} = {new}\n"
            code = "".join(lines)
        else:
            assert code.count(old) == 1, f"{code.count(old)} times in train.py: {old}"
            code = code.replace(old, new)
    return code


def load(code: str) -> types.ModuleType:
    """A copy of train.py as a module."""
    module = types.ModuleType("ablated")
    sys.modules["ablated"] = module  # dataclasses look their module up
    exec(compile(code, "ablated", "exec"), vars(module))
    module.PRINT_EVERY_S = math.inf
    return module


def batches(data: Data, start: int, steps: int) -> Iterator[Batch]:
    """Rows of the training split from `start` on, with the progress of a run of so many steps."""
    rows = data.split("train")
    for step in range(steps):
        at = (start + ROWS * step) % (len(rows) - ROWS)
        tokens = torch.from_numpy(rows[at : at + ROWS].astype("int64"))
        yield Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), step / steps)


def train(module: types.ModuleType, data: Data, seed: int, steps: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = module.GPT(module.pick_size(), data.vocab_size, torch.float32).eval()
    module.stream = lambda rows, seq_len: batches(data, seed * 10_000, steps)
    module.train(model, module.Optimizer(model), ROWS, 1)
    return model


def step_costs(copies: dict[str, str], data: Data, turns: int = 9, steps: int = 6) -> dict[str, float]:
    """Processor time of a step of each copy, of that of the whole train.py beside it: the median of several turns.

    A copy that differs in the value of a knob computes the same: 1.
    """
    torch.set_num_threads(1)

    def cost(code: str) -> float:
        module = load(code)
        train(module, data, 0, 2)
        began = time.process_time()
        train(module, data, 0, steps)
        return time.process_time() - began

    knobs = [part for part in copies if all(old.isidentifier() for old, _ in PARTS[part])]
    costs = dict.fromkeys(knobs, 1.0)
    for part in copies.keys() - costs.keys():
        costs[part] = statistics.median(cost(copies[part]) / cost(copies[FULL]) for _ in range(turns))
    return costs


@torch.no_grad()
def score(model: torch.nn.Module, data: Data) -> float:
    """Bits per byte over the first rows of the validation split."""
    tokens = torch.from_numpy(data.split("val")[:EVAL_ROWS].astype("int64"))
    nats = sum(model(part[:, :-1], part[:, 1:]).item() * part[:, 1:].numel() for part in tokens.split(ROWS))
    return nats / math.log(2) / float(data.token_bytes()[tokens[:, 1:].numpy()].sum())


def measure(code: str, data: Data, seed: int, steps: int) -> float | None:
    """val_bpb of one run; None when it did not survive."""
    torch.set_num_threads(1)
    try:
        value = score(train(load(code), data, seed, steps), data)
    except SystemExit:  # its loss was not finite
        return None
    return value if math.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=750, help="of the whole train.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=PARTS, help="these parts alone")
    options = parser.parse_args()
    os.environ["AUTORESEARCH_DATA"] = "builtin"
    data, code = open_data("builtin"), (ROOT / "train.py").read_text()
    copies = {part: without(code, PARTS[part]) for part in PARTS if part in (options.only or PARTS) or part == FULL}
    costs = step_costs(copies, data)
    steps = {part: round(options.steps / costs[part]) for part in copies}
    jobs = [(part, seed) for seed in range(options.seeds) for part in copies]
    results: dict[str, list[float | None]] = {part: [] for part in copies}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(measure, copies[part], data, seed, steps[part]) for part, seed in jobs]
        for (part, seed), future in zip(jobs, futures, strict=True):
            results[part].append(future.result())
            print(f"  seed {seed}, {part}: {results[part][-1]}", flush=True)
    print(f"\n{'without':34}{'step':>6}{'val_bpb':>10}{'delta':>10}{'+-':>8}  n")
    for part, values in results.items():
        pairs = [(v, full) for v, full in zip(values, results[FULL], strict=True) if v and full]
        if not pairs:
            print(f"{part:34}{costs[part]:6.2f}{'diverged':>10}")
            continue
        deltas = [v - full for v, full in pairs]
        error = statistics.stdev(deltas) / len(deltas) ** 0.5 if len(deltas) > 1 else math.nan
        print(f"{part:34}{costs[part]:6.2f}{statistics.mean(v for v, _ in pairs):10.4f}"
              f"{statistics.mean(deltas):+10.4f}{error:8.4f}  {len(deltas)}")


if __name__ == "__main__":
    main()
