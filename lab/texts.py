"""Where text comes from: builtin's Python sources, climbmix's shards, a person's own files.

Promises the same documents in the same order on every machine, each in one split. Downloads resume. Knows nothing
of tokens.
"""

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from lab.ledger import SetupError

Report = Callable[[str, int, int], None]  # (phase, done, total); total is 0 where nobody knows it
Documents = Iterator[tuple[str, str]]     # (split, text)

HOLD_OUT = 20                     # one document in 20 goes to val and one to test, chosen by its hash
SUFFIXES = (".txt", ".jsonl", ".parquet")
PIECE_CHARS = 8192                # a long .txt file becomes documents of about this size
LINE_CHARS = 1 << 16              # a line is read in parts of this size: some files are a single line
BLANKS = b" \t\n\r\f\v"

ENDPOINT = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
VAL_SHARD, TEST_SHARD = "shard_06542.parquet", "shard_06541.parquet"
MAX_SHARDS = 6541                 # training shards are numbered from 0 and end before the test shard
RETRY_WAITS_S = (1, 2, 4, 8, 16, 32)
FIRST_TRIES = 3                   # tries for a first byte; a network that gave some bytes gets longer to come back
FINAL_FAULTS = ("HTTP 401", "HTTP 403", "HTTP 404")


def documents(source: str, files: dict[str, Path]) -> Documents:
    """Every document with its split, in the order of the files; a second copy of one is left out.

    The splits of climbmix are its shards. A person's documents are split by their hash. Of builtin, val and test are
    the test suites, those files left out that have a copy among what trials may read.
    """
    known = set()
    for file, path in files.items():
        for text in texts(path):
            if source == "climbmix":  # the set is too large to remember, and its makers took the copies out
                yield shard_split(file), text
                continue
            number = content_number(text)
            if number in known:
                continue
            known.add(number)
            if source != "builtin":
                yield {0: "val", 1: "test"}.get(number % HOLD_OUT, "train"), text
            else:
                yield ("val", "test")[number % 2] if is_held_out(file) else "train", text


def content_number(text: str) -> int:
    """A hash of the text without its white space, so that a file and its reformatted copy share it."""
    content = text.encode().translate(None, BLANKS)
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


# builtin -------------------------------------------------------------------------------------------------------------


def builtin_files() -> dict[str, Path]:
    """The Python sources that torch brings, 79 MB, those that trials may read first.

    torch/version.py is left out: it alone differs between torch's builds.
    """
    files = {path.relative_to(root.parent).as_posix(): path
             for root in _package_folders() for path in root.rglob("*.py")}
    del files["torch/version.py"]
    return dict(sorted(files.items(), key=lambda item: (is_held_out(item[0]), item[0])))


def is_held_out(file: str) -> bool:
    """Whether a file of builtin is for val or test: it belongs to a test suite, which no trial imports."""
    package, *folders = file.split("/")[:-1]
    return package != "torch" and "tests" in folders


def test_suites() -> list[Path]:
    """The folders of builtin's held-out files, their compiled copies (.pyc) included."""
    found = (path for root in _package_folders()[1:] for path in root.rglob("tests"))
    return sorted(path for path in found if path.is_dir())


def _package_folders() -> list[Path]:
    return [Path(find_spec(package).origin).parent for package in ("torch", "sympy", "networkx")]


# A person's own files ------------------------------------------------------------------------------------------------


def own_files(source: str) -> tuple[dict[str, Path], str]:
    """The text files at a path, and how many were read and skipped. Raises SetupError where there is none."""
    path = Path(source)
    if not path.exists():
        raise SetupError(f"no corpus {source!r}; use builtin, climbmix, or a file or folder that exists")
    found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    files = {p.relative_to(path.parent).as_posix(): p for p in found if p.suffix in SUFFIXES}
    if not files:
        raise SetupError(f"no text in {source}; a corpus is a .txt, .jsonl or .parquet file, or a folder of them")
    return dict(sorted(files.items())), _count(found)


def _count(found: list[Path]) -> str:
    """For example "12 files read, 3 skipped (.md 2, .gz 1)"."""
    skipped = Counter(p.suffix or "no suffix" for p in found if p.suffix not in SUFFIXES)
    words = f"{len(found) - skipped.total()} files read"
    if skipped:
        kinds = ", ".join(f"{suffix} {n}" for suffix, n in skipped.most_common(5))
        words += f", {skipped.total()} skipped ({kinds})"
    return words


def text_bytes(files: Iterable[Path]) -> int:
    """Size of the text in files, near enough: .parquet packs it to about a third."""
    return sum(path.stat().st_size * (3 if path.suffix == ".parquet" else 1) for path in files)


def texts(path: Path) -> Iterator[str]:
    """The documents in one file, without those that are blank."""
    try:
        yield from (text for text in _raw_texts(path) if text and not text.isspace())
    except UnicodeDecodeError:
        raise SetupError(f"{path} is not UTF-8 text; convert or remove it") from None


def _raw_texts(path: Path) -> Iterator[str | None]:
    if path.suffix == ".parquet":
        for batch in _parquet(path).iter_batches(1024, columns=["text"]):
            yield from batch.column(0).to_pylist()
    elif path.suffix == ".py":
        yield path.read_text("utf-8", "replace")
    else:
        with open(path, encoding="utf-8-sig") as file:
            yield from _lines(path, file) if path.suffix == ".jsonl" else _pieces(file)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise SetupError(f'{path} line {number} is not a JSON object with a string "text"; mend or remove it')
        yield text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair


def _pieces(file: TextIO) -> Iterator[str]:
    """Cut a long text at the first blank line after 8 K characters, at the latest after 16 K."""
    piece, size = [], 0
    while line := file.readline(LINE_CHARS):
        piece.append(line)
        size += len(line)
        if size >= 2 * PIECE_CHARS or (size >= PIECE_CHARS and not line.strip()):
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _parquet(path: Path) -> "pyarrow.parquet.ParquetFile":  # noqa: F821
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        why = str(error).splitlines()[0]
        raise SetupError(f"{path} is not a parquet file ({why}); mend or remove it") from None
    column = file.schema_arrow.field("text").type if "text" in file.schema_arrow.names else None
    if column not in (pyarrow.string(), pyarrow.large_string()):
        raise SetupError(f'{path} has no string column "text"; rename the one that holds the text')
    return file


# climbmix ------------------------------------------------------------------------------------------------------------


def shard_split(file: str) -> str:
    return {VAL_SHARD: "val", TEST_SHARD: "test"}.get(file, "train")


def download(folder: Path, n_shards: int, report: Report) -> dict[str, Path]:
    """The shards of climbmix, those already there included. Validation comes first: a missing one shows at once."""
    base = (os.environ.get("AUTORESEARCH_ENDPOINT") or ENDPOINT).rstrip("/")
    files = [VAL_SHARD, TEST_SHARD, *(f"shard_{number:05}.parquet" for number in range(n_shards))]
    for number, file in enumerate(files, 1):
        if not (folder / file).exists():
            phase = f"downloading shard {number} of {len(files)}"
            _fetch(f"{base}/{file}", folder / file, lambda done, total, phase=phase: report(phase, done, total))
    return {file: folder / file for file in files}


def _fetch(url: str, target: Path, report: Callable[[int, int], None]) -> None:
    """Ask for one file until it is whole. Raises SetupError when several tries in a row bring nothing."""
    part, failures = target.with_name(f"{target.name}.part"), 0
    while True:
        before = _size(part)
        fault = _resume(url, part, report)
        if not fault:
            os.replace(part, target)
            return
        failures = 0 if _size(part) > before else failures + 1
        if fault in FINAL_FAULTS or failures > (len(RETRY_WAITS_S) if _size(part) else FIRST_TRIES - 1):
            raise SetupError(f"cannot download climbmix: {url}: {fault}; mend the network (or AUTORESEARCH_ENDPOINT), "
                             "or use --data builtin, which needs none")
        time.sleep(RETRY_WAITS_S[max(0, failures - 1)] * random.uniform(0.5, 1))


def _resume(url: str, part: Path, report: Callable[[int, int], None]) -> str:
    """Request the bytes that a file still lacks. Returns what went wrong, "" when it is whole."""
    import requests

    headers = {"Range": f"bytes={_size(part)}-", "Accept-Encoding": "identity"}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, 30)) as answer:
            if answer.status_code == 416:  # the part is longer than the file: it belongs to another one
                part.unlink(missing_ok=True)
            if answer.status_code not in (200, 206):
                return f"HTTP {answer.status_code}"
            _save(answer, part, report)
    except requests.RequestException as error:
        return type(error).__name__
    try:
        _parquet(part)
    except SetupError:
        part.unlink()
        return "not a parquet file came"
    return ""


def _save(answer: "requests.Response", part: Path, report: Callable[[int, int], None]) -> None:  # noqa: F821
    """Append an answer to the part. Raises requests.RequestException when it breaks off."""
    have = _size(part) if answer.status_code == 206 else 0
    total = have + int(answer.headers.get("Content-Length", 0))
    with open(part, "ab" if have else "wb") as file:
        for block in answer.iter_content(1 << 16):
            file.write(block)
            have += len(block)
            report(have, total)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
