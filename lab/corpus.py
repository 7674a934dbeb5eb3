"""Text in, tokenizer and packed rows out: prepares a corpus once, and knows a prepared one again.

Promises the same bytes in the same order on every machine: the manifest's hash says which bytes, and a file that lies
in the corpus' folder under its own name is whole. Downloads resume. It does not know what a trial is.
"""

import base64
import errno
import fcntl
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from lab.ledger import SetupError

RULE = 1                          # counts every change below that moves a packed byte; part of the data hash
TINY, SMALL, LARGE = (512, 128), (2048, 256), (8192, 2048)           # (VOCAB_SIZE, MAX_SEQ_LEN)
SIZES = {"builtin": SMALL, "climbmix": LARGE}
TIERS = ((2e6, TINY), (200e6, SMALL), (float("inf"), LARGE))         # a path's size: the first with less text (bytes)
# Scored after a trial, at most. builtin: 1024 rows, on which the difference of two seeds of train.py has a standard
# error of 0.004 bits per byte where the seeds differ by 0.04 (after 300 steps), and that of two like models one of
# 0.001. climbmix: 2048 rows, eight times as long.
EVAL_TOKENS = {TINY: 1 << 16, SMALL: 1 << 18, LARGE: 1 << 22}
HOLD_OUT = 20                     # one document in 20 is for val and one for test, by its hash
MIN_ROWS = 8                      # a split with fewer measures nothing
TOKENIZER_BYTES = 91_000_000      # of training text for the tokenizer: rustbpe's 3 s
BUFFER = 1000                     # documents that a row may choose from, the field's number
SLICE = 1 << 16                   # characters encoded at once: 3 M blanks in a row overflow the pattern's stack
# GPT-4's way to split text into words, but one or two digits a number: 110 numbers, not 1110, in a small vocabulary
PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BOS = "<|bos|>"                   # the only special token, id VOCAB_SIZE - 1
ENDPOINT = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
SHARDS = {f"shard_{number:05}.parquet": split for number, split in
          [(6542, "val"), (6541, "test"), *((number, "train") for number in range(12))]}
RETRY_WAITS_S = (1, 2, 4, 8, 16, 32)
Report = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass(frozen=True)
class Data:
    """A prepared corpus."""

    folder: Path
    name: str
    hash: str                  # of tokenizer, packed files and RULE; its first 8 characters go into every row
    vocab_size: int
    max_seq_len: int
    rows: dict[str, int]       # by split: train, val, test
    eval_rows: dict[str, int]  # val, test: a score is over the first so many rows

    @classmethod
    def load(cls, folder: Path) -> "Data":
        """What open_data prepared in that folder; nothing is checked again."""
        manifest = json.loads((folder / "manifest.json").read_text())
        return cls(folder, **{f.name: manifest[f.name] for f in fields(cls) if f.name != "folder"})

    def split(self, name: str) -> np.memmap:
        """uint16 (rows, max_seq_len + 1), read-only, in a fixed random order."""
        return np.memmap(self.folder / f"{name}.bin", np.uint16, "r", shape=(self.rows[name], self.max_seq_len + 1))

    def tokenizer(self) -> "tiktoken.Encoding":  # noqa: F821
        """The corpus' own; tiktoken's named ones need the network."""
        import tiktoken

        content = json.loads((self.folder / "tokenizer.json").read_text())
        ranks = {base64.b64decode(token): rank for rank, token in enumerate(content["tokens"])}
        return tiktoken.Encoding("autoresearch", pat_str=content["pattern"], mergeable_ranks=ranks,
                                 special_tokens={BOS: self.vocab_size - 1})

    def token_bytes(self) -> np.ndarray:
        """int64 (vocab_size,): the bytes each token stands for; 0 for BOS and for ids that a poor text left unused.

        The token's own bytes: by way of decode() and encode(), a token that is no valid UTF-8 would count three.
        """
        encoding, counts = self.tokenizer(), np.zeros(self.vocab_size, np.int64)
        for token in range(len(encoding.token_byte_values())):
            counts[token] = len(encoding.decode_single_token_bytes(token))
        return counts


def cache_folder() -> Path:
    from platformdirs import user_cache_path

    forced = os.environ.get("AUTORESEARCH_CACHE")
    return Path(forced).absolute() if forced else user_cache_path("autoresearch")


def default_data() -> str:
    """climbmix where torch will find a CUDA GPU, else builtin; seen without the seconds that `import torch` takes."""
    card = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # dxg: Linux inside Windows
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    wanted = (os.environ.get("AUTORESEARCH_DEVICE") or "cuda").startswith("cuda")
    cuda_build = (Path(find_spec("torch").origin).parent / "lib/libtorch_cuda.so").exists()
    return "climbmix" if card and wanted and cuda_build and not hidden else "builtin"


def open_data(name: str, report: Report = lambda phase, done, total: None) -> Data:
    """The corpus `builtin`, `climbmix` or at a path, prepared if it is not yet. Raises SetupError."""
    try:
        folder = _find(name, report)
    except OSError as error:
        where = str(error.filename or cache_folder())
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SetupError(f"no disk space left in {where}; free some, or set AUTORESEARCH_CACHE") from error
        advice = "set AUTORESEARCH_CACHE" if where.startswith(str(cache_folder())) else "name a corpus that can be read"
        raise SetupError(f"cannot use {where}: {error.strerror}; {advice}") from error
    return Data.load(folder)


def _find(name: str, report: Report) -> Path:
    """The folder of a corpus, prepared; named by the content of its files, which are known again by size and time."""
    folder, files, seen = cache_folder() / f"climbmix-{RULE}", {}, None
    if name != "climbmix":
        files = _builtin_files() if name == "builtin" else _path_files(name)
        looks = [(str(path), (now := path.stat()).st_size, now.st_mtime_ns) for path in files.values()]
        seen = cache_folder() / "seen" / hashlib.sha256(f"{RULE} {looks}".encode()).hexdigest()
        content = seen.read_text() if seen.exists() else _content(files)
        folder = cache_folder() / f"{Path(name).stem[:40]}-{RULE}-{content[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder, report):
        if not _intact(folder):
            (folder / "manifest.json").unlink(missing_ok=True)
            _prepare(name, folder, files or _download(folder, report), report)
        if seen and not seen.exists():
            seen.parent.mkdir(exist_ok=True)
            _write(seen, content.encode())
    return folder


@contextmanager
def _lock(folder: Path, report: Report) -> Iterator[None]:
    """One process a folder, whether it checks or prepares; the lock falls with its process."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that prepares this corpus", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _content(files: dict[str, Path]) -> str:
    return hashlib.sha256(repr([(file, _sha256(path)) for file, path in files.items()]).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, power cuts included."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _intact(folder: Path) -> bool:
    """Whether a folder holds what its manifest says; a file is hashed again when size, time or inode have changed."""
    checked = folder / "checked.json"
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        now = json.dumps([[s.st_size, s.st_mtime_ns, s.st_ino] for s in ((folder / file).stat() for file in files)])
    except (FileNotFoundError, ValueError, KeyError):
        return False
    if not checked.exists() or checked.read_text() != now:
        if any(_sha256(folder / file) != digest for file, digest in files.items()):
            (folder / "tokenizer.json").unlink(missing_ok=True)
            return False
        _write(checked, now.encode())
    return True


# Where text comes from -----------------------------------------------------------------------------------------------


def _builtin_files() -> dict[str, Path]:
    """The Python sources that torch brings, 79 MB; torch/version.py alone differs between its builds."""
    roots = [Path(find_spec(package).origin).parent for package in ("torch", "sympy", "networkx")]
    files = {path.relative_to(root.parent).as_posix(): path for root in roots for path in root.rglob("*.py")}
    del files["torch/version.py"]
    return dict(sorted(files.items()))


def _path_files(name: str) -> dict[str, Path]:
    path = Path(name).expanduser().absolute()
    if not path.exists():
        raise SetupError(f"no corpus {name!r}; use builtin, climbmix, or a file or folder that exists")
    paths = [path] if path.is_file() else path.rglob("*")
    files = {p.relative_to(path.parent).as_posix(): p for p in paths
             if p.suffix in (".txt", ".jsonl", ".parquet") and p.is_file()}
    if not files:
        raise SetupError(f"no text in {name}; a corpus is a .txt, .jsonl or .parquet file, or a folder of them")
    return dict(sorted(files.items()))


def _text_bytes(path: Path) -> int:
    """Size of the text in a file, near enough; of .parquet, what its text column unpacks to."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    metadata = _parquet(path).metadata
    columns = (metadata.row_group(i).column(j) for i in range(metadata.num_row_groups)
               for j in range(metadata.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")


def _parquet(path: Path) -> "pyarrow.parquet.ParquetFile":  # noqa: F821
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise SetupError(f"{path} is not a parquet file ({str(error).splitlines()[0]}); mend or remove it") from None
    if "text" not in file.schema_arrow.names or file.schema_arrow.field("text").type not in (
            pyarrow.string(), pyarrow.large_string()):
        raise SetupError(f'{path} has no string column "text"; rename the one that holds the text')
    return file


def _texts(path: Path) -> Iterator[str]:
    """The documents in one file."""
    if path.suffix == ".parquet":
        for batch in _parquet(path).iter_batches(1024, columns=["text"]):
            yield from filter(None, batch.column(0).to_pylist())
    elif path.suffix == ".py":
        yield path.read_text("utf-8", "replace")
    else:
        try:
            with open(path, encoding="utf-8-sig") as file:
                yield from _lines(path, file) if path.suffix == ".jsonl" else _pieces(file)
        except UnicodeDecodeError:
            raise SetupError(f"{path} is not UTF-8 text; convert or remove it") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise SetupError(f'{path} line {number} is not a JSON object with a string "text"; mend or remove it')
        yield text


def _pieces(file: TextIO) -> Iterator[str]:
    """A long text is many documents: of about 8 K characters, to the next blank line if one comes within 8 K more."""
    piece, size = [], 0
    while line := file.readline(SLICE):
        piece.append(line)
        size += len(line)
        if size >= 16384 or (size >= 8192 and not line.strip()):
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _documents(name: str, files: dict[str, Path]) -> Iterator[tuple[str, str, float]]:
    """(split, text, dice in [0, 1)) in the order of the files. A document's hash is its split: equal ones share it."""
    known = set()
    for file, path in files.items():
        for text in _texts(path):
            if not text.strip():
                continue
            if name == "climbmix":
                yield SHARDS[file], text, 0.0
                continue
            raw = text.encode("utf-8", "replace")  # JSON may hold half a surrogate pair
            digest = hashlib.sha256(raw).digest()
            if name == "builtin":  # torch repeats itself
                if digest in known:
                    continue
                known.add(digest)
            slot, dice = divmod(int.from_bytes(digest[:4], "big"), HOLD_OUT)[::-1]
            yield {0: "val", 1: "test"}.get(slot, "train"), raw.decode(), dice * HOLD_OUT / 2**32


def _download(folder: Path, report: Report) -> dict[str, Path]:
    """The shards of climbmix, those for validation first: what is missing shows at once. Whole ones are kept."""
    base = (os.environ.get("AUTORESEARCH_ENDPOINT") or ENDPOINT).rstrip("/")
    for number, file in enumerate(SHARDS, 1):
        part, tries, size = folder / f"{file}.part", 0, 0
        while not (folder / file).exists():
            if not (fault := _fetch(f"{base}/{file}", part, f"downloading shard {number} of {len(SHARDS)}", report)):
                os.replace(part, folder / file)
                break
            before, size = size, part.stat().st_size if part.exists() else 0
            tries = tries + 1 if size <= before else 0
            if tries > (len(RETRY_WAITS_S) if size else 2) or fault in ("HTTP 401", "HTTP 403", "HTTP 404"):
                raise SetupError(f"cannot download climbmix: {base}/{file}: {fault}; mend the network (or "
                                 "AUTORESEARCH_ENDPOINT), or use --data builtin, which needs none")
            time.sleep(RETRY_WAITS_S[max(0, tries - 1)] * random.uniform(0.5, 1))
    return {file: folder / file for file in SHARDS}


def _fetch(url: str, part: Path, phase: str, report: Report) -> str:
    """One request for what is missing of a file; what went wrong, or "" when it is whole."""
    import requests

    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, 30)) as answer:
            if answer.status_code == 416:  # no byte after these: not the file that was begun
                part.unlink(missing_ok=True)
                return "the file has changed"
            if answer.status_code not in (200, 206):
                return f"HTTP {answer.status_code}"
            have = have if answer.status_code == 206 else 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with open(part, "ab" if have else "wb") as file:
                for block in answer.iter_content(1 << 16):
                    file.write(block)
                    report(phase, have := have + len(block), total)
                file.flush()
                os.fsync(file.fileno())
    except requests.RequestException as error:
        return type(error).__name__
    if have < total:
        return f"{have} of {total} bytes came"
    try:
        _parquet(part)
    except SetupError:
        part.unlink()
        return "not a parquet file came"
    return ""


# From text to rows ---------------------------------------------------------------------------------------------------


def _prepare(name: str, folder: Path, files: dict[str, Path], report: Report) -> None:
    """Write the folder's files, the manifest last."""
    n_bytes = sum(map(_text_bytes, files.values()))
    size = vocab_size, max_seq_len = SIZES.get(name) or next(size for limit, size in TIERS if n_bytes < limit)
    if not (folder / "tokenizer.json").exists():
        _train_tokenizer(folder, vocab_size, name, files, n_bytes, report)
    encoding = Data(folder, name, "", vocab_size, max_seq_len, {}, {}).tokenizer()
    # the field crops what is longer than a row, and climbmix is for its numbers; of a smaller corpus all is kept
    cut = None if name == "climbmix" else max_seq_len
    with ExitStack() as stack:
        packers = {split: Packer(max_seq_len + 1, stack.enter_context(tempfile.TemporaryFile(dir=folder)))
                   for split in ("train", "val", "test")}
        for split, tokens in _tokenize(encoding, _documents(name, files), cut,
                                       lambda done: report("tokenizing", min(done, n_bytes), n_bytes)):
            packers[split].add(tokens)
        rows = {split: packer.finish() for split, packer in packers.items()}
        if min(rows.values()) < MIN_ROWS:
            raise SetupError(f"{name} is too small for three splits: {rows} rows of {max_seq_len} tokens, {MIN_ROWS} "
                             "needed in each; add text, or use --data builtin")
        for done, (split, packer) in enumerate(packers.items()):
            report("shuffling", done, len(packers))
            _shuffle(packer.file, folder / f"{split}.bin", max_seq_len + 1)
    hashes = {file: _sha256(folder / file) for file in ("tokenizer.json", *(f"{split}.bin" for split in rows))}
    manifest = {
        "name": name, "hash": hashlib.sha256(json.dumps([RULE, hashes]).encode()).hexdigest(), "rule": RULE,
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "rows": rows,
        "eval_rows": {split: min(rows[split], EVAL_TOKENS[size] // max_seq_len) for split in ("val", "test")},
        "text_bytes": n_bytes, "files": hashes,
        "sources": {file: [path.stat().st_size, _sha256(path)] for file, path in files.items()},
    }
    _write(folder / "manifest.json", json.dumps(manifest, indent=0).encode())


def _train_tokenizer(folder: Path, vocab_size: int, name: str, files: dict[str, Path], n_bytes: int,
                     report: Report) -> None:
    """Byte pairs of the training documents, of a fair sample where there are too many; as text, never a pickle."""
    import rustbpe

    goal = min(TOKENIZER_BYTES, n_bytes)

    def sample() -> Iterator[str]:
        taken = 0
        for split, text, dice in _documents(name, files):
            if split == "train" and dice * n_bytes < TOKENIZER_BYTES:  # climbmix: 0, it is shuffled
                report("training the tokenizer", min(taken, goal), goal)
                yield from _slices(text)
                taken += len(text)
            if taken >= goal:
                return

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(sample(), vocab_size - 1, buffer_size=512, pattern=PATTERN)
    tokens = [bytes(token) for token, rank in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    content = {"pattern": PATTERN, "tokens": [base64.b64encode(token).decode() for token in tokens]}
    _write(folder / "tokenizer.json", json.dumps(content, indent=0).encode())


def _slices(text: str) -> Iterator[str]:
    return (text[i : i + SLICE] for i in range(0, len(text), SLICE))


def _tokenize(encoding, documents: Iterator[tuple[str, str, float]], cut: int | None,
              report: Callable[[int], None]) -> Iterator[tuple[str, np.ndarray]]:
    """(split, BOS and tokens) in the order of the documents; one of more than `cut` tokens becomes several.

    Threads are enough: tiktoken works outside the interpreter's lock. About two chunks of 1 M characters a core are in
    flight, whatever the size of the corpus.
    """
    bos, n_threads = encoding.n_vocab - 1, os.cpu_count() or 1

    def encode(chunk: list[tuple[str, str]]) -> list[tuple[str, np.ndarray]]:
        done = []
        for split, text in chunk:
            tokens = np.concatenate([encoding.encode_to_numpy(part, disallowed_special=()) for part in _slices(text)])
            step = cut or len(tokens)
            starts = range(0, len(tokens), step)
            done += [(split, np.append(bos, tokens[i : i + step]).astype(np.uint16)) for i in starts]
        return done

    with ThreadPoolExecutor(n_threads) as pool:
        flight: deque[Future] = deque()
        chunk, size, total = [], 0, 0
        report(0)
        for split, text, _ in documents:
            chunk.append((split, text))
            size += len(text)
            if size >= 1 << 20:
                flight.append(pool.submit(encode, chunk))
                report(total := total + size)
                chunk, size = [], 0
            if len(flight) > 2 * n_threads:
                yield from flight.popleft().result()
        flight.append(pool.submit(encode, chunk))
        while flight:
            yield from flight.popleft().result()


class Packer:
    """Best-fit packing, the field's rule: no padding, and a choice of 1000 documents leaves little to crop.

    A row takes the longest document that fits whole, of equal ones the oldest; when none fits, the shortest one is
    cropped to fill the row. Every document begins with BOS, so every row does.
    """

    def __init__(self, row_tokens: int, file: BinaryIO):
        self.file, self.row, self.filled, self.n_rows = file, np.empty(row_tokens, np.uint16), 0, 0
        self.lengths: list[int] = []  # of the documents that wait, sorted, each once
        self.waiting: dict[int, deque[np.ndarray]] = {}
        self.n_waiting = 0

    def add(self, document: np.ndarray) -> None:
        length = len(document)
        if length not in self.waiting:
            insort(self.lengths, length)
            self.waiting[length] = deque()
        self.waiting[length].append(document)
        self.n_waiting += 1
        if self.n_waiting == BUFFER:
            self._place()

    def _place(self) -> None:
        room = len(self.row) - self.filled
        i = max(0, bisect_right(self.lengths, room) - 1)
        same = self.waiting[self.lengths[i]]
        document = same.popleft()[:room]
        if not same:
            del self.waiting[self.lengths.pop(i)]
        self.n_waiting -= 1
        self.row[self.filled : self.filled + len(document)] = document
        self.filled += len(document)
        if self.filled == len(self.row):
            self.file.write(self.row)
            self.n_rows, self.filled = self.n_rows + 1, 0

    def finish(self) -> int:
        """Pack what still waits, but for a last row that stays open; the number of rows."""
        while self.n_waiting:
            self._place()
        self.file.flush()
        return self.n_rows


def _shuffle(source: BinaryIO, target: Path, row_tokens: int) -> None:
    """Rows in a fixed random order, so that the first n are a fair sample; through a memory map, so any number."""
    rows = np.memmap(source, np.uint16, "r").reshape(-1, row_tokens)
    order = np.random.RandomState(RULE).permutation(len(rows))  # RandomState: its numbers never change with numpy
    partial = target.with_name(target.name + ".tmp")
    with open(partial, "wb") as file:
        for i in range(0, len(rows), 4096):
            file.write(rows[order[i : i + 4096]])
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, target)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A Report that draws on stdout: a bar on a terminal, else a line every five seconds."""
    if not sys.stdout.isatty():
        last = {"phase": "", "at": 0.0}

        def line(phase: str, done: int, total: int) -> None:
            if phase != last["phase"] or time.monotonic() - last["at"] > 5:
                print(phase if not total else f"{phase}: {done / total:.0%}", flush=True)
                last.update(phase=phase, at=time.monotonic())

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(), transient=True) as bar:
        task = bar.add_task("", total=None)

        def draw(phase: str, done: int, total: int) -> None:
            if bar.tasks[0].description != phase:
                bar.reset(task, description=phase)
            bar.update(task, completed=done, total=total or None)

        yield draw
