"""Prepared corpora: find one or make one, and know it again.

Promises that equal text gives equal bytes on every machine, and that every file of a prepared corpus is whole. The
hash in its manifest says which bytes those are. lab/texts.py brings the text, lab/packing.py makes rows of it. Knows
nothing of trials.
"""

import argparse
import errno
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lab import packing, texts
from lab.ledger import SetupError, write_durably
from lab.texts import Documents, Report
from prepare import default_device

RULE = 2                          # counts every change that moves a packed byte; part of the data hash
TINY, SMALL, LARGE = (512, 128), (2048, 256), (8192, 2048)   # (VOCAB_SIZE, MAX_SEQ_LEN)
SIZES = {"builtin": SMALL, "climbmix": LARGE}
TIERS = ((2e6, TINY), (200e6, SMALL), (float("inf"), LARGE))  # a person's own files: the first with less text (bytes)
# How much of val a trial is scored on, at most. builtin: 1024 rows, over which the difference of two seeds of train.py
# that are 0.057 bits per byte apart after 300 steps has a standard error of 0.005. climbmix: 2048 rows, eight times as
# long.
EVAL_TOKENS = {TINY: 1 << 16, SMALL: 1 << 18, LARGE: 1 << 22}
SCORE_ERROR = 0.005               # bits per byte: standard error of the difference of two trials over 1024 such rows
MIN_ROWS = 8                      # a split with fewer rows measures nothing
FEW_ROWS = 200                    # a val split with fewer rows gets a warning
SHARDS = 12                       # of climbmix for training; 300 s on an H200 pass them less than twice
SILENCE_S = 3.0                   # a phase says at least this often that it goes on


@dataclass(frozen=True)
class Data:
    """A prepared corpus."""

    folder: Path
    name: str                  # builtin, climbmix, or the last part of a path
    source: str                # builtin, climbmix, or the whole path: open_data(source, shards=shards) finds it again
    shards: int                # of climbmix for training; 0 for other corpora
    read: str                  # "12 files read, 3 skipped (.md 2, .gz 1)" for a path, else ""
    hash: str                  # of tokenizer, packed files and RULE; its first 8 characters go into every row
    vocab_size: int
    max_seq_len: int
    rows: dict[str, int]       # by split: train, val, test
    eval_rows: dict[str, int]  # val, test: a score is over the first so many rows

    @classmethod
    def load(cls, folder: Path) -> "Data":
        """Read what open_data prepared in that folder, without checking it again."""
        manifest = json.loads((folder / "manifest.json").read_text())
        return cls(folder, **{f.name: manifest[f.name] for f in fields(cls) if f.name != "folder"})

    def split(self, name: str) -> np.memmap:
        """uint16 (rows, max_seq_len + 1), read-only, in a fixed random order."""
        shape = self.rows[name], self.max_seq_len + 1
        return np.memmap(self.folder / f"{name}.bin", np.uint16, "r", shape=shape)

    def tokenizer(self) -> "tiktoken.Encoding":  # noqa: F821
        return packing.load_tokenizer(self.folder / "tokenizer.json", self.vocab_size)

    def token_bytes(self) -> np.ndarray:
        """int64 (vocab_size,): the bytes each token stands for; 0 for BOS and for ids that a poor text left unused.

        They are counted without decode() and encode(), through which a token that is no valid UTF-8 becomes 3 bytes.
        """
        encoding, counts = self.tokenizer(), np.zeros(self.vocab_size, np.int64)
        for token in range(len(encoding.token_byte_values())):
            counts[token] = len(encoding.decode_single_token_bytes(token))
        return counts

    @property
    def train_tokens(self) -> int:
        """Unique training tokens: what a trial can train on before it sees a row again."""
        return self.rows["train"] * self.max_seq_len

    def summary(self) -> str:
        rows = ", ".join(f"{split} {n}" for split, n in self.rows.items())
        read = f"; {self.read}" if self.read else ""
        return (f"{self.name}: data {self.hash[:8]}, vocabulary {self.vocab_size}, {self.train_tokens / 1e6:.1f} M "
                f"training tokens, rows of {self.max_seq_len}: {rows}{read}")

    def caveat(self) -> str:
        """What numbers on a small val split are worth; "" where it is large enough."""
        n_rows = self.rows["val"]
        if n_rows >= FEW_ROWS:
            return ""
        error = SCORE_ERROR * (EVAL_TOKENS[SMALL] / (n_rows * self.max_seq_len)) ** 0.5
        return (f"val has {n_rows} rows of {self.max_seq_len} tokens: on other text of the same kind, the gain of a "
                f"trial would differ by about {error:.3f} bits per byte; add text for finer numbers")


def passes(data: Data, n_tokens: float) -> float:
    """How often a trial that trains on so many tokens sees each of them. Past 2, models of this kind collapse."""
    return n_tokens / data.train_tokens


# Names and places ----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    if forced := os.environ.get("AUTORESEARCH_CACHE"):
        return Path(forced).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("autoresearch")


def default_data() -> str:
    """climbmix where torch will find a CUDA GPU, else builtin; without the seconds that `import torch` takes."""
    cuda_build = (Path(find_spec("torch").origin).parent / "lib/libtorch_cuda.so").exists()
    return "climbmix" if default_device() == "cuda" and cuda_build else "builtin"


def absolute(name: str) -> str:
    """A corpus' name as it is, a path made absolute. To be called before the working directory changes."""
    return name if name in SIZES else str(Path(name).expanduser().absolute())


def held_out(source: str = "builtin") -> list[Path]:
    """What no trial may read: prepared corpora, builtin's held-out files, and a person's own corpus."""
    own = [] if source in SIZES else [Path(absolute(source))]
    return [cache_folder(), *texts.test_suites(), *own]


def remembered(data_hash: str) -> tuple[str, int] | None:
    """(source, shards) of the prepared corpus whose hash begins like that; None where the cache has lost it."""
    for manifest in sorted(cache_folder().glob("*/manifest.json")):
        try:
            data = Data.load(manifest.parent)
        except (OSError, ValueError, KeyError):  # not prepared to its end, or by another version
            continue
        if data.hash.startswith(data_hash):
            return data.source, data.shards
    return None


# Find or make --------------------------------------------------------------------------------------------------------


def open_data(name: str, report: Report = lambda phase, done, total: None, shards: int = SHARDS) -> Data:
    """The corpus `builtin`, `climbmix` or at a path, prepared if it is not yet. Raises SetupError.

    shards: how many of climbmix are for training. Tokenizer, val and test do not depend on it.
    """
    if not 1 <= shards <= texts.MAX_SHARDS:
        raise SetupError(f"{shards} shards of climbmix; choose from 1 to {texts.MAX_SHARDS}")
    try:
        return _open(absolute(name), report, shards)
    except OSError as error:
        raise SetupError(_advice(error)) from error


def _advice(error: OSError) -> str:
    where = str(error.filename or cache_folder())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no disk space left in {where}; free some, or set AUTORESEARCH_CACHE"
    in_cache = where.startswith(str(cache_folder()))
    advice = "set AUTORESEARCH_CACHE" if in_cache else "name a corpus that can be read"
    return f"cannot use {where}: {error.strerror}; {advice}"


def _open(source: str, report: Report, shards: int) -> Data:
    facts = {"name": Path(source).name, "source": source, "shards": 0, "read": ""}
    files: dict[str, Path] = {}
    if source == "climbmix":
        facts["shards"] = shards
    elif source == "builtin":
        files = texts.builtin_files()
    else:
        files, facts["read"] = texts.own_files(source)
    looks = f"{RULE} {facts['shards']} {[*files]} {_looks(files.values())}"
    folder = cache_folder() / f"{facts['name'][:40]}-{hashlib.sha256(looks.encode()).hexdigest()[:16]}"
    shards_folder = cache_folder() / "climbmix"  # all numbers of shards share it
    with _locked(shards_folder if source == "climbmix" else folder, report):
        if not _is_intact(folder, report):
            folder.mkdir(exist_ok=True)
            (folder / "manifest.json").unlink(missing_ok=True)
            _prepare(folder, facts, files or texts.download(shards_folder, shards, report), report)
    return replace(Data.load(folder), **facts)


@contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """One process at a time, whether it checks or prepares; the lock falls with its process."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            report("waiting for another process that prepares this corpus", 0, 0)
    try:
        yield
    finally:
        lock.release()


def _looks(paths: Iterable[Path]) -> str:
    """Size, time and inode of files: as long as they are equal, so is the content."""
    stats = [path.stat() for path in paths]
    return json.dumps([(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats])


def _hashes(files: dict[str, Path], phase: str, report: Report) -> dict[str, str]:
    """The SHA-256 of each file."""
    found = {}
    for done, (name, path) in enumerate(files.items()):
        report(phase, done, len(files))
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _is_intact(folder: Path, report: Report) -> bool:
    """Whether a folder holds what its manifest says; a file is hashed again when it looks changed."""
    checked = folder / "checked.json"
    try:
        hashes = json.loads((folder / "manifest.json").read_text())["files"]
        paths = {file: folder / file for file in hashes}
        looks = _looks(paths.values())
    except (FileNotFoundError, ValueError, KeyError):
        return False
    if checked.exists() and checked.read_text() == looks:
        return True
    if _hashes(paths, "checking", report) != hashes:
        return False
    write_durably(checked, looks.encode())
    return True


def _prepare(folder: Path, facts: dict, files: dict[str, Path], report: Report) -> None:
    """Write the folder's files, the manifest last."""
    source = facts["source"]
    n_bytes = texts.text_bytes(files.values())
    size = SIZES.get(source) or next(size for limit, size in TIERS if n_bytes < limit)
    vocab_size, max_seq_len = size
    tokenizer = folder / "tokenizer.json"
    write_durably(tokenizer, _tokenizer(source, files, vocab_size, report))
    documents = _reporting(texts.documents(source, files), "tokenizing", n_bytes, report)
    # the field crops what is longer than a row, and climbmix is for its numbers; of a smaller corpus all is kept
    cut = None if source == "climbmix" else max_seq_len
    tokenized = packing.tokenize(packing.load_tokenizer(tokenizer, vocab_size), documents, cut)
    rows = packing.pack(tokenized, folder, max_seq_len + 1, lambda done, total: report("shuffling", done, total))
    if min(rows.values()) < MIN_ROWS:
        raise SetupError(f"{source} is too small for three splits: {rows} rows of {max_seq_len} tokens, {MIN_ROWS} "
                         "needed in each; add text, or use --data builtin")
    paths = {file: folder / file for file in ("tokenizer.json", *(f"{split}.bin" for split in rows))}
    hashes, sources = _hashes(paths, "checking", report), _hashes(files, "checking", report)
    manifest = facts | {
        "hash": hashlib.sha256(json.dumps([RULE, hashes]).encode()).hexdigest(), "rule": RULE,
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "rows": rows,
        "eval_rows": {split: min(rows[split], EVAL_TOKENS[size] // max_seq_len) for split in ("val", "test")},
        "train_tokens": rows["train"] * max_seq_len, "text_bytes": n_bytes, "files": hashes,
        "sources": {file: [files[file].stat().st_size, digest] for file, digest in sources.items()},
    }
    write_durably(folder / "checked.json", _looks(paths.values()).encode())
    write_durably(folder / "manifest.json", json.dumps(manifest, indent=0).encode())


def _tokenizer(source: str, files: dict[str, Path], vocab_size: int, report: Report) -> bytes:
    """climbmix' comes from its first training shard alone, so that more shards leave it as it is."""
    if source == "climbmix":
        first = next(file for file in files if texts.shard_split(file) == "train")
        files = {first: files[first]}
    n_bytes = texts.text_bytes(files.values())
    documents = _reporting(texts.documents(source, files), "training the tokenizer", n_bytes, report)
    return packing.train_tokenizer(documents, n_bytes, vocab_size)


def _reporting(documents: Documents, phase: str, n_bytes: int, report: Report) -> Documents:
    """The same documents; every million characters are reported."""
    done, told = 0, -1
    for split, text in documents:
        if done >> 20 > told:
            told = done >> 20
            report(phase, min(done, n_bytes), n_bytes)
        done += len(text)
        yield split, text


# Progress ------------------------------------------------------------------------------------------------------------


class _Lines:
    """Progress as plain lines: one for each new phase, and one every three seconds while it lasts."""

    def __init__(self):
        self.phase, self.line = "", ""
        self.began = self.told = 0.0
        self.ended = threading.Event()

    def report(self, phase: str, done: int, total: int) -> None:
        self.line = f"{phase}: {done / total:.0%}" if total else phase
        if phase != self.phase:
            self.phase, self.began = phase, time.monotonic()
            self.say(self.line)

    def say(self, line: str) -> None:
        self.told = time.monotonic()
        print(line, flush=True)

    def repeat(self) -> None:
        while not self.ended.wait(0.1):
            now = time.monotonic()
            if self.line and now - self.told > SILENCE_S:
                self.say(f"{self.line}, {now - self.began:.0f} s")


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A Report that draws on stdout: a bar with a clock on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        lines = _Lines()
        thread = threading.Thread(target=lines.repeat, daemon=True)
        thread.start()
        try:
            yield lines.report
        finally:
            lines.ended.set()
            thread.join()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(), transient=True) as bar:
        task = bar.add_task("", total=None)

        def draw(phase: str, done: int, total: int) -> None:
            if bar.tasks[0].description != phase:
                bar.reset(task, description=phase)
            bar.update(task, completed=done, total=total or None)

        yield draw


def main() -> int:
    """`python prepare.py`: prepare a corpus once, and say what it holds."""
    parser = argparse.ArgumentParser(prog="prepare.py",
                                     description="Prepare a corpus once; agent.py does it by itself.")
    parser.add_argument("--data", metavar="D", default=default_data(), help="builtin, climbmix, or a .txt, .jsonl or "
                        ".parquet file or a folder of them (default here: %(default)s)")
    try:
        with progress_bar() as report:
            data = open_data(parser.parse_args().data, report)
    except SetupError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{data.name}: data {data.hash[:8]}, vocabulary {data.vocab_size}, rows of {data.max_seq_len} tokens: "
          + ", ".join(f"{split} {n}" for split, n in data.rows.items()) + f", in {data.folder}")
    return 0
