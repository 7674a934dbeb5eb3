"""What each part of train.py gives: every part switched off in a copy, at equal time, over several seeds.

    python tests/bench/ablation.py --budget 60 --seeds 3 [--data builtin] [--only NAME ...]

Prints part, val_bpb without it, delta (positive: the part pays) and its standard error. Seeds are the outer loop, so
that a machine that slows down slows all parts alike. Runs parts x seeds x (budget + some seconds): for an idle machine.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab import runner  # noqa: E402
from prepare import Data, open_data  # noqa: E402

FULL = "everything"
PARTS: dict[str, list[tuple[str, str]]] = {  # part: replacements that switch it off; a knob is (NAME, value)
    FULL: [],
    "bigram table": [("pairs = self.bigrams(pair_rows(x, self.bigrams.num_embeddings)).to(self.dtype)", "pairs = 0.0")],
    "value embeddings": [("% VALUE_EVERY == 0 for", "% VALUE_EVERY < 0 for")],
    "value gate": [("gate = 2 * torch.sigmoid(", "gate = 1.0 + 0.0 * torch.sigmoid(")],
    "Muon (AdamW instead)": [
        ("            ([model.head.weight],",
         "            ([*model.attentions.parameters(), *model.mlps.parameters()], HEAD_LR, 0.01, ADAM_BETA1),\n"
         "            ([model.head.weight],"),
        ("Muon([*model.attentions.parameters(), *model.mlps.parameters()],", "Muon([],")],
    "NorMuon variance step": [("power.clamp_min(1e-10).rsqrt()", "1.0")],
    "cautious decay (plain)": [("(update * weight > 0).to(weight.dtype)", "1.0")],
    "matrix decay": [("MATRIX_DECAY", "0.0")],
    "first embedding in every layer": [("embed_lambdas[0, i] * embedded + ", "")],
    "learnt residual weights": [("RESIDUAL_LR", "0.0")],
    "relu squared (relu)": [(".square())", ")")],
    "q and k norm": [("norm(rotate(qkv[:, :, :2], cos, sin)) * QK_SCALE", "rotate(qkv[:, :, :2], cos, sin)")],
    "q and k times 1.15": [("QK_SCALE", "1.0")],
    "softcap": [("SOFTCAP * torch.tanh(logits)", "SOFTCAP * logits")],
    "zero outward matrices": [("outward.weight.zero_()", "outward.weight.uniform_(-bound, bound)")],
    "short windows": [("SHORT_WINDOW", "1")],
    "middle layer subtracted": [("BACKOUT", "0.0")],
    "smaller first matrices": [("INIT_SCALE", "1.0")],
    "momentum warm-up": [("MOMENTUM_START", "0.95")],
    "long warm-down (40 %)": [("WARMDOWN", "0.4")],
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


def measure(code: str, data: Data, budget_s: float, seed: int) -> float | None:
    with tempfile.TemporaryDirectory() as folder:
        trial = runner.run(code, data=data, seed=seed, budget_s=budget_s, folder=Path(folder) / "trial")
    if trial.crashed:
        print(f"    crash: {trial.reason}")
    return trial.val_bpb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=60, help="seconds a trial")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="these parts alone")
    options = parser.parse_args()
    data, code = open_data(options.data), (ROOT / "train.py").read_text()
    copies = {part: without(code, PARTS[part]) for part in PARTS if part in (options.only or PARTS) or part == FULL}
    results: dict[str, list[float | None]] = {part: [] for part in copies}
    for seed in range(options.seeds):
        for part, copy in copies.items():
            results[part].append(measure(copy, data, options.budget, seed))
            print(f"  seed {seed}, without {part}: {results[part][-1]}", flush=True)
    print(f"\n{'part':34}{'without it':>12}{'delta':>10}{'+-':>8}  n")
    for part, values in results.items():
        pairs = [(v, full) for v, full in zip(values, results[FULL], strict=True) if v and full]
        if not pairs:
            print(f"{part:34}{'crash':>12}")
            continue
        deltas = [v - full for v, full in pairs]
        error = statistics.stdev(deltas) / len(deltas) ** 0.5 if len(deltas) > 1 else float("nan")
        print(f"{part:34}{statistics.mean(v for v, _ in pairs):12.4f}{statistics.mean(deltas):+10.4f}{error:8.4f}"
              f"  {len(deltas)}")


if __name__ == "__main__":
    main()
