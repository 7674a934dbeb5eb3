"""Where text comes from: builtin's Python sources, climbmix's shards, a person's own files.

Promises the same documents in the same order on every machine, each in one split. Downloads resume.
"""

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from lab.ledger import SetupError, one_line

Report = Callable[[str, int, int], None]  # (phase, done, total); total is 0 where nobody knows it
Documents = Iterator[tuple[str, str]]     # (split, text)

HOLD_OUT = 20             # one document in 20 goes to val and one to test, chosen by its hash
SUFFIXES = (".txt", ".jsonl", ".parquet")
PIECE_CHARS = 8192        # a long .txt file becomes documents of about this size
LINE_CHARS = 1 << 16      # a line is read in parts of this size: some files are a single line

ENDPOINT = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
SPLITS = {"shard_06542.parquet": "val", "shard_06541.parquet": "test"}  # the others: train
MAX_SHARDS = 6541         # training shards are numbered from 0 and end before the test shard
RETRY_WAITS_S = (0, 1, 2, 4, 8, 16)  # before each try for a shard


def documents(source: str, files: dict[str, Path],
              report: Callable[[int, int], None] = lambda done, total: None) -> Documents:
    """Every document with its split, in the order of the files; a second copy of one is left out.

    The splits of climbmix are its shards. A person's documents are split by their hash. For builtin, val and test
    are test suites, without the files of which trials may read a copy.
    """
    known = set()
    for done, (file, path) in enumerate(files.items()):
        report(done, len(files))
        for text in texts(path):
            if source == "climbmix":  # too large to remember, and free of copies
                yield SPLITS.get(file, "train"), text
                continue
            # white space does not count: a reformatted copy is a copy
            digest = hashlib.sha256(text.encode().translate(None, b" \t\n\r\f\v")).digest()
            number = int.from_bytes(digest[:8], "big")
            if number in known:
                continue
            known.add(number)
            if source != "builtin":
                yield {0: "val", 1: "test"}.get(number % HOLD_OUT, "train"), text
            else:
                yield ("val", "test")[number % 2] if is_held_out(file) else "train", text


def text_bytes(files: Iterable[Path]) -> int:
    """Size of the text in files, near enough: .parquet packs it to about a third."""
    return sum(path.stat().st_size * (3 if path.suffix == ".parquet" else 1) for path in files)


def builtin_files() -> dict[str, Path]:
    """The Python sources that torch brings, 79 MB; the files that trials may read come first."""
    files = {path.relative_to(root.parent).as_posix(): path for root in _packages() for path in root.rglob("*.py")}
    del files["torch/version.py"]  # it alone differs between torch's builds
    return dict(sorted(files.items(), key=lambda item: (is_held_out(item[0]), item[0])))


def is_held_out(file: str) -> bool:
    """Whether a file of builtin is for val or test: a test suite, which no trial imports."""
    package, *folders = file.split("/")[:-1]
    return package != "torch" and "tests" in folders


def test_suites() -> list[Path]:
    """The folders of builtin's held-out files, their compiled copies (.pyc) included."""
    return sorted(path for root in _packages()[1:] for path in root.rglob("tests") if path.is_dir())


def _packages() -> list[Path]:
    return [Path(find_spec(package).origin).parent for package in ("torch", "sympy", "networkx")]


def find_files(source: str) -> tuple[dict[str, Path], str]:
    """The files of builtin or at a path, and what was skipped there. Raises SetupError."""
    if source == "climbmix":
        return {}, ""
    if source == "builtin":
        return builtin_files(), ""
    path = Path(source)
    if not path.exists():
        raise SetupError(f"no corpus {source!r}; use builtin, climbmix, or a file or folder that exists")
    found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    files = {p.relative_to(path.parent).as_posix(): p for p in found if p.suffix in SUFFIXES}
    if not files:
        raise SetupError(f"no text in {source}; a corpus is a .txt, .jsonl or .parquet file, or a folder of them")
    read = f"{len(files)} file{'s' * (len(files) != 1)} read"
    if skipped := Counter(p.suffix or "no suffix" for p in found if p.suffix not in SUFFIXES):
        kinds = ", ".join(f"{suffix} {n}" for suffix, n in skipped.most_common(5))
        read += f", {skipped.total()} skipped ({kinds})"
    return dict(sorted(files.items())), read


def texts(path: Path) -> Iterator[str]:
    """The documents in one file, without those that are blank."""
    readers = {".parquet": _from_parquet, ".jsonl": _from_jsonl, ".txt": _from_txt}
    try:
        found = [path.read_text("utf-8", "replace")] if path.suffix == ".py" else readers[path.suffix](path)
        yield from (text for text in found if text and not text.isspace())
    except UnicodeDecodeError:
        raise SetupError(f"{path} is not UTF-8 text; convert or remove it") from None


def _from_txt(path: Path) -> Iterator[str]:
    """Cut a long text at the first blank line after 8 K characters, at the latest after 16 K."""
    piece, size = [], 0
    with open(path, encoding="utf-8-sig") as file:
        while line := file.readline(LINE_CHARS):
            piece.append(line)
            size += len(line)
            if size >= 2 * PIECE_CHARS or (size >= PIECE_CHARS and not line.strip()):
                yield "".join(piece)
                piece, size = [], 0
    yield "".join(piece)


def _from_jsonl(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"] if line.strip() else ""
                text = text.encode("utf-8", "replace").decode()  # half a surrogate pair
            except (ValueError, KeyError, TypeError, AttributeError):
                raise SetupError(f'{path} line {number} has no string "text"; mend or remove it') from None
            yield text


def _from_parquet(path: Path) -> Iterator[str | None]:
    import pyarrow

    file = _parquet(path)
    try:
        for batch in file.iter_batches(1024, columns=["text"]):
            yield from batch.column(0).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise SetupError(f"{path} is damaged ({one_line(str(error), 120)}); mend or remove it") from None


def _parquet(path: Path) -> "pyarrow.parquet.ParquetFile":  # noqa: F821
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        why = str(error).splitlines()[0]
        raise SetupError(f"{path} is not a parquet file ({why}); mend or remove it") from None
    column = file.schema_arrow.field("text").type if "text" in file.schema_arrow.names else None
    if column not in (pyarrow.string(), pyarrow.large_string()):
        raise SetupError(f'{path} has no string column "text"; rename the one that holds the text')
    return file


def download(folder: Path, n_shards: int, report: Report) -> dict[str, Path]:
    """The shards of climbmix. Validation comes first: a missing one shows at once."""
    base = (os.environ.get("AUTORESEARCH_ENDPOINT") or ENDPOINT).rstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    files = [*SPLITS, *(f"shard_{number:05}.parquet" for number in range(n_shards))]
    for number, file in enumerate(files, 1):
        if not (folder / file).exists():
            tell = partial(report, f"downloading shard {number} of {len(files)}")
            tell(0, 0)
            _fetch(f"{base}/{file}", folder / file, tell)
    return {file: folder / file for file in files}


def _fetch(url: str, target: Path, report: Callable[[int, int], None]) -> None:
    """Download one file; each try goes on where the last one ended. Raises SetupError."""
    from requests import HTTPError, RequestException

    part = target.with_name(f"{target.name}.part")
    part.touch()
    for wait_s in RETRY_WAITS_S:
        time.sleep(wait_s * random.uniform(0.5, 1))
        try:
            _resume(url, part, report)
            _parquet(part)
            return os.replace(part, target)
        except SetupError as error:  # the page of a login, perhaps
            fault = str(error)
            os.truncate(part, 0)
        except RequestException as error:
            fault = one_line(str(error), 200)
            is_final = isinstance(error, HTTPError) and error.response.status_code in (401, 403, 404)
            nothing_came = wait_s > 1 and not part.stat().st_size
            if is_final or nothing_came:
                break
    raise SetupError(f"cannot download climbmix from {url}: {fault}; mend the network (or AUTORESEARCH_ENDPOINT), or "
                     "use --data builtin, which needs none")


def _resume(url: str, part: Path, report: Callable[[int, int], None]) -> None:
    """Append the bytes that a file lacks. Raises RequestException."""
    import requests

    headers = {"Range": f"bytes={part.stat().st_size}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=(10, 30)) as answer:
        if answer.status_code == 416:  # the part is no shorter than the file, so it may belong to another one
            os.truncate(part, 0)
        answer.raise_for_status()
        with open(part, "ab" if answer.status_code == 206 else "wb") as file:
            total = file.tell() + int(answer.headers.get("Content-Length", 0))
            for block in answer.iter_content(1 << 16):
                file.write(block)
                report(file.tell(), total)
            file.flush()
            os.fsync(file.fileno())
