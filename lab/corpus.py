"""Prepared corpora: find one or make one, and know it again.

Promises that equal text gives equal bytes on every machine, and that every file of a prepared
corpus is whole. lab/texts.py brings the text, lab/packing.py makes rows of it.
"""

import argparse
import errno
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lab import packing, texts
from lab.ledger import SetupError, write_durably
from lab.texts import Report
from prepare import default_device

RULE = 2             # version of this code: raise it when a packed byte changes; part of the data hash
TINY, SMALL, LARGE = (512, 128), (2048, 256), (8192, 2048)  # (VOCAB_SIZE, MAX_SEQ_LEN)
SIZES = {"builtin": SMALL, "climbmix": LARGE}
TIERS = ((2e6, TINY), (200e6, SMALL), (float("inf"), LARGE))  # a path: (less text than, sizes)
# The most tokens that a trial is scored on. builtin: 1024 rows, over which the difference of two seeds has a standard
# error of 0.001 bits per byte if they are 0.004 apart, and of 0.005 if they are 0.057 apart. climbmix: 2048 rows, eight
# times as long; half of them would give 0.0004 for the close pair and 0.0003 for a changed learning rate: too coarse.
EVAL_TOKENS = {TINY: 1 << 16, SMALL: 1 << 18, LARGE: 1 << 22}
SCORE_ERROR = 0.005  # bits per byte: standard error of a difference over 1024 rows of 256
MIN_ROWS = 8         # a split with fewer rows measures nothing
FEW_ROWS = 200       # a val split with fewer rows gets a warning
SHARDS = 12          # of climbmix for training; 300 s on an H200 pass them less than twice


@dataclass(frozen=True)
class Data:
    """A prepared corpus."""

    folder: Path
    name: str                  # builtin, climbmix, or the last part of a path
    source: str                # builtin, climbmix, or the whole path: open_data() finds it by this
    shards: int                # of climbmix for training; 0 for other corpora
    read: str                  # "12 files read, 3 skipped (.md 2, .gz 1)" for a path, else ""
    hash: str                  # of tokenizer, rows and RULE; its first 8 characters go into results.tsv
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
        """int64 (vocab_size,): the bytes each token stands for; 0 for BOS and for unused ids."""
        encoding, counts = self.tokenizer(), np.zeros(self.vocab_size, np.int64)
        for token in range(len(encoding.token_byte_values())):
            # decode() would make 3 bytes of a token that is no valid UTF-8
            counts[token] = len(encoding.decode_single_token_bytes(token))
        return counts

    @property
    def train_tokens(self) -> int:
        """Unique training tokens: what a trial can train on before it sees a row again."""
        return self.rows["train"] * self.max_seq_len

    def summary(self) -> str:
        rows = ", ".join(f"{split} {n}" for split, n in self.rows.items())
        read = f"; {self.read}" if self.read else ""
        return (f"{self.name}: data {self.hash[:8]}, vocabulary {self.vocab_size}, "
                f"{self.train_tokens / 1e6:.1f} M training tokens, rows of {self.max_seq_len}: {rows}{read}")

    def caveat(self) -> str:
        """What numbers on a small val split are worth; "" where it is large enough."""
        n_rows = self.rows["val"]
        if n_rows >= FEW_ROWS:
            return ""
        error = SCORE_ERROR * (EVAL_TOKENS[SMALL] / (n_rows * self.max_seq_len)) ** 0.5
        return (f"val has {n_rows} rows of {self.max_seq_len} tokens: a gain is known to about {error:.3f} "
                "bits per byte; add text for finer numbers")


def cache_folder() -> Path:
    if forced := os.environ.get("AUTORESEARCH_CACHE"):
        return Path(forced).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("autoresearch")


def default_data() -> str:
    """climbmix where torch will find a CUDA GPU, otherwise builtin; torch is not imported."""
    cuda_build = (Path(find_spec("torch").origin).parent / "lib/libtorch_cuda.so").exists()
    return "climbmix" if default_device() == "cuda" and cuda_build else "builtin"


def absolute(name: str) -> str:
    """A corpus' name as it is, a path made absolute: the working directory may change."""
    return name if name in SIZES else str(Path(name).expanduser().absolute())


def held_out(source: str = "builtin") -> list[Path]:
    """What no trial may read: prepared corpora, builtin's held-out files, a person's own."""
    own = [] if source in SIZES else [Path(absolute(source))]
    return [cache_folder(), *texts.test_suites(), *own]


def remembered(data_hash: str) -> tuple[str, int] | None:
    """(source, shards) of the prepared corpus with that hash; None where the cache lacks it."""
    for manifest in sorted(cache_folder().glob("*/manifest.json")):
        with suppress(ValueError, KeyError):  # written by another version
            data = Data.load(manifest.parent)
            if data.hash.startswith(data_hash):
                return data.source, data.shards
    return None


def open_data(name: str, report: Report = lambda phase, done, total: None, shards: int = SHARDS) -> Data:
    """The corpus `builtin`, `climbmix` or at a path, prepared if it is not yet. Raises SetupError."""
    try:
        return _find_or_make(absolute(name), report, shards)
    except OSError as error:
        where = error.filename or cache_folder()
        fault = f"cannot use {where}: {error.strerror}; make it readable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fault = f"no disk space left in {where}; free some"
        raise SetupError(f"{fault}, or set AUTORESEARCH_CACHE") from error


def _find_or_make(source: str, report: Report, shards: int) -> Data:
    """One process at a time checks or prepares a corpus; the kernel drops its lock if it dies."""
    from filelock import FileLock

    files, read = texts.find_files(source)
    shards = shards if source == "climbmix" else 0
    facts = {"name": Path(source).name, "source": source, "shards": shards, "read": read}
    looks = f"{RULE} {shards} {[*files]} {_looks(files.values())}"
    short = facts["name"][:40]
    folder = cache_folder() / f"{short}-{hashlib.sha256(looks.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / f"{short}.lock"):
        if not _is_intact(folder, report):
            (folder / "manifest.json").unlink(missing_ok=True)
            _prepare(folder, facts, files or texts.download(cache_folder() / "climbmix", shards, report), report)
    return replace(Data.load(folder), **facts)


def _looks(paths: Iterable[Path]) -> str:
    """Size, time and inode of files: as long as they are equal, so is the content."""
    stats = [path.stat() for path in paths]
    return json.dumps([(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats])


def _hashes(files: dict[str, Path], report: Report) -> dict[str, str]:
    found = {}
    for done, (name, path) in enumerate(files.items()):
        report("checking", done, len(files))
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _is_intact(folder: Path, report: Report) -> bool:
    """Whether a folder holds what its manifest says; files that look unchanged are not read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        paths = {file: folder / file for file in manifest["files"]}
        return manifest["looks"] == _looks(paths.values()) or manifest["files"] == _hashes(paths, report)
    except (FileNotFoundError, ValueError, KeyError):  # not whole, damaged, or of another version
        return False


def _prepare(folder: Path, facts: dict, files: dict[str, Path], report: Report) -> None:
    """Write the folder's files, the manifest last."""
    source, n_bytes = facts["source"], texts.text_bytes(files.values())
    size = SIZES.get(source) or next(size for limit, size in TIERS if n_bytes < limit)
    vocab_size, max_seq_len = size
    sample = files
    if source == "climbmix":  # one shard, so that the tokenizer does not depend on --shards
        sample = dict([*files.items()][len(texts.SPLITS) :][:1])
    documents = texts.documents(source, sample, partial(report, "training the tokenizer"))
    tokenizer = packing.train_tokenizer(documents, texts.text_bytes(sample.values()), vocab_size)
    write_durably(folder / "tokenizer.json", tokenizer)
    documents = texts.documents(source, files, partial(report, "tokenizing"))
    # Documents longer than a row: climbmix crops them, as is usual; a smaller corpus splits them to keep all.
    cut = None if source == "climbmix" else max_seq_len
    encoding = packing.load_tokenizer(folder / "tokenizer.json", vocab_size)
    rows = packing.pack(packing.tokenize(encoding, documents, cut), folder, max_seq_len + 1)
    if min(rows.values()) < MIN_ROWS:
        raise SetupError(f"{source} is too small for three splits: {rows} rows of {max_seq_len} tokens, {MIN_ROWS} "
                         "needed in each; add text, or use --data builtin")
    paths = {file: folder / file for file in ("tokenizer.json", *(f"{split}.bin" for split in rows))}
    hashes, sources = _hashes(paths, report), _hashes(files, report)
    manifest = facts | {
        "hash": hashlib.sha256(json.dumps([RULE, hashes]).encode()).hexdigest(),
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "rows": rows,
        "eval_rows": {split: min(rows[split], EVAL_TOKENS[size] // max_seq_len) for split in ("val", "test")},
        "files": hashes, "looks": _looks(paths.values()),
        "sources": {file: [files[file].stat().st_size, digest] for file, digest in sources.items()},
    }
    write_durably(folder / "manifest.json", json.dumps(manifest, indent=0).encode())


def main() -> int:
    """`python prepare.py`: prepare a corpus once, and say what it holds."""
    from lab.display import progress_bar

    about = "Prepare a corpus once; agent.py does it by itself."
    parser = argparse.ArgumentParser(prog="prepare.py", description=about)
    parser.add_argument("--data", metavar="D", default=default_data(), help="builtin, climbmix, or a .txt, .jsonl or "
                        ".parquet file or a folder of them (default here: %(default)s)")
    try:
        with progress_bar() as report:
            data = open_data(parser.parse_args().data, report)
    except SetupError as error:
        parser.exit(2, f"prepare.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "prepare.py: stopped; the same command goes on from here\n")
    print(f"{data.summary()}, in {data.folder}")
    return 0
