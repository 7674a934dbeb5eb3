"""Seconds and tokens/s of every step between text and rows, on the builtin corpus: python tests/bench/bench_data.py

Prints a table; about 30 s on two cores. Everything is made in a temporary cache.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from lab import corpus, packing, texts


def line(name: str, seconds: float, millions: float = 0, unit: str = "M tokens") -> None:
    print(f"{name:44}{seconds:8.2f} s" + (f"{millions / seconds:10.1f} {unit}/s" if millions else ""), flush=True)


def generated(n_documents: int, vocab_size: int) -> list[np.ndarray]:
    """Documents of climbmix-like length: log-normal, median 550 tokens."""
    rng = np.random.RandomState(0)
    return [rng.randint(0, vocab_size, size, dtype=np.uint16)
            for size in np.clip(rng.lognormal(6.3, 0.9, n_documents), 8, 50_000).astype(int)]


def pack(documents: list[np.ndarray], row_tokens: int) -> None:
    n_tokens = sum(map(len, documents))
    began = time.perf_counter()
    n_rows = sum(1 for _ in packing.best_fit(documents, row_tokens))
    line(f"packing rows of {row_tokens}, {n_rows * row_tokens / n_tokens:.0%} kept", time.perf_counter() - began,
         n_tokens / 1e6)


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AUTORESEARCH_CACHE"] = cache
        phases: dict[str, float] = {}
        began = last = time.perf_counter()

        def report(phase: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            phases[phase] = phases.get(phase, 0) + now - last
            last = now

        data = corpus.open_data("builtin", report)
        tokens = sum(data.rows.values()) * data.max_seq_len / 1e6
        line("builtin, all of it", time.perf_counter() - began, tokens)
        for phase, seconds in phases.items():
            line(f"  until the last report of: {phase}", seconds)
        began = time.perf_counter()
        data = corpus.open_data("builtin")
        line("opened again", time.perf_counter() - began)

        documents = list(texts.documents("builtin", texts.builtin_files()))
        began, cpu = time.perf_counter(), time.process_time()
        parts = [part for _, part in packing.tokenize(data.tokenizer(), iter(documents), 256)]
        seconds, n_tokens = time.perf_counter() - began, sum(map(len, parts)) / 1e6
        line(f"tokenizing, {os.cpu_count()} cores, {time.process_time() - cpu:.1f} s of CPU", seconds, n_tokens)
        pack(parts, 257)
        pack(generated(60_000, 8191), 2049)
        rows = data.split("train")
        began = time.perf_counter()
        total = sum(int(rows[i : i + 128].tobytes()[0]) for _ in range(4) for i in range(0, len(rows), 128))
        line("reading rows of the memory map", time.perf_counter() - began, 4 * rows.size / 1e6 + total * 0)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak_gb:.2f} GB, the documents that this benchmark holds included")


if __name__ == "__main__":
    main()
