"""Corpora: the same bytes everywhere, splits that share nothing, a preparation that survives what interrupts it."""

import argparse
import errno
import hashlib
import http.server
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT, make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import corpus as corpora
from lab import opening, packing, texts
from lab.corpus import Data, open_data
from lab.ledger import Row, SetupError

PYTHON = sys.executable


def run_prepare(cache: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run([PYTHON, "prepare.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"AUTORESEARCH_CACHE": str(cache)} | variables)


# Packing --------------------------------------------------------------------------------------------------------------


def naive_rows(documents: list[list[int]], row_tokens: int, buffer: int) -> list[list[int]]:
    """The rule as it is said: look at every document of the buffer before every choice."""
    documents, waiting, rows, row = list(documents), [], [], []
    while True:
        while documents and len(waiting) < buffer:
            waiting.append(documents.pop(0))
        if not waiting:
            return rows
        room = row_tokens - len(row)
        fitting = [document for document in waiting if len(document) <= room]
        chosen = max(fitting, key=len) if fitting else min(waiting, key=len)  # both: the oldest of equal ones
        waiting.pop(next(i for i, document in enumerate(waiting) if document is chosen))
        row += chosen[:room]
        if len(row) == row_tokens:
            rows.append(row)
            row = []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(2, 25), st.integers(1, 12))
def test_rows_are_those_of_the_naive_rule(lengths: list[int], row_tokens: int, buffer: int) -> None:
    documents = [[1000 * (i + 1) + j for j in range(length)] for i, length in enumerate(lengths)]
    arrays = (np.array(document, np.uint16) for document in documents)
    with mock.patch.object(packing, "BUFFER", buffer):
        rows = [row.tolist() for row in packing.best_fit(arrays, row_tokens)]
    assert rows == naive_rows(documents, row_tokens, buffer)


def test_a_row_starts_with_bos_and_holds_only_known_tokens(corpus: Data) -> None:
    known = {*range(len(corpus.tokenizer().token_byte_values())), corpus.vocab_size - 1}
    for split, n_rows in corpus.rows.items():
        rows = corpus.split(split)
        assert rows.shape == (n_rows, corpus.max_seq_len + 1)
        assert rows.dtype == np.uint16
        assert not rows.flags.writeable
        assert (rows[:, 0] == corpus.vocab_size - 1).all()
        assert set(np.unique(rows).tolist()) <= known


def test_a_document_longer_than_a_row_is_cut_not_cropped(corpus: Data) -> None:
    encoding, text = corpus.tokenizer(), make_text(5, 500)
    parts = [tokens for _, tokens in packing.tokenize(encoding, iter([("val", text)]), 64)]
    assert all(part[0] == corpus.vocab_size - 1 for part in parts)
    assert {len(part) for part in parts[:-1]} == {65}
    assert encoding.decode([int(token) for part in parts for token in part[1:]]) == text


def test_most_of_the_text_survives_packing(corpus: Data, corpus_path: Path) -> None:
    n_bytes = sum(path.stat().st_size for path in corpus_path.iterdir())
    counts = corpus.token_bytes()
    assert sum(counts[corpus.split(split)].sum() for split in corpus.rows) > 0.9 * n_bytes


def test_rows_are_in_random_order_so_that_the_first_ones_are_a_fair_sample(tmp_path: Path) -> None:
    source = np.repeat(np.arange(9000, dtype=np.uint16)[:, None], 3, axis=1)
    assert packing.pack((("train", row) for row in source), tmp_path, 3) == {"train": 9000, "val": 0, "test": 0}
    shuffled = np.fromfile(tmp_path / "train.bin", np.uint16).reshape(9000, 3)
    assert sorted(shuffled.tolist()) == source.tolist()
    assert abs(shuffled[:900, 0].mean() - 4500) < 300  # its standard error is 87


# Tokenizer ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_byte_counts_are_those_of_the_text(corpus: Data, text: str) -> None:
    tokens = corpus.tokenizer().encode_to_numpy(text, disallowed_special=())
    assert corpus.token_bytes()[tokens].sum() == len(text.encode("utf-8", "replace"))


@pytest.fixture(params=["corpus", pytest.param("builtin", marks=pytest.mark.long)])
def prepared(request: pytest.FixtureRequest) -> Data:
    return request.getfixturevalue(request.param)


def test_a_token_that_is_no_valid_utf8_counts_its_own_bytes(prepared: Data) -> None:
    counts, encoding = prepared.token_bytes(), prepared.tokenizer()
    n_known = len(encoding.token_byte_values())
    assert counts.shape == (prepared.vocab_size,) and counts.dtype == np.int64
    assert not counts[n_known:].any() and n_known < prepared.vocab_size and counts[:n_known].min() == 1
    invalid = [token for token in range(n_known) if "\ufffd" in encoding.decode([token])]
    assert len(invalid) >= 128
    assert any(len(encoding.decode([token]).encode()) != counts[token] for token in invalid)


def test_numbers_are_split_into_at_most_two_digits(prepared: Data) -> None:
    encoding = prepared.tokenizer()
    pieces = [encoding.decode([token]) for token in encoding.encode_ordinary("x = 1234567")]
    assert all(sum(c.isdigit() for c in piece) <= 2 for piece in pieces)


def test_the_name_of_bos_in_a_text_is_plain_text(corpus: Data) -> None:
    [(_, tokens)] = packing.tokenize(corpus.tokenizer(), iter([("val", "<|bos|> a")]), None)
    assert (tokens == corpus.vocab_size - 1).sum() == 1


def test_a_run_of_three_million_blanks_is_text_like_any_other(cache: Path, tmp_path: Path) -> None:
    texts = [make_text(i, 400) for i in range(120)] + [" " * 3_000_000 + "end"]
    (tmp_path / "blanks.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert open_data(str(tmp_path / "blanks.jsonl")).rows["train"] > 100


# Splits, hashes, files ------------------------------------------------------------------------------------------------


def by_split(source: str, files: dict[str, Path]) -> dict[str, Counter]:
    """The texts of each split, without their white space."""
    found = {split: Counter() for split in ("train", "val", "test")}
    for split, text in texts.documents(source, files):
        found[split]["".join(text.split())] += 1
    return found


def disjoint(found: dict[str, Counter]) -> bool:
    return len(set().union(*found.values())) == sum(map(len, found.values()))


def test_no_document_is_in_two_splits_and_none_comes_twice(tmp_path: Path) -> None:
    documents = [make_text(i % 500, 20) for i in range(2000)]  # each four times, far apart, the last time indented
    lines = [json.dumps({"text": text if i < 1500 else f"  {text}\n"}) for i, text in enumerate(documents)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:1000]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[1000:]))
    found = by_split("x", texts.find_files(str(tmp_path))[0])
    assert disjoint(found) and min(map(len, found.values())) > 0
    assert {split: sum(counts.values()) for split, counts in found.items()}["train"] > 425
    assert sum(sum(counts.values()) for counts in found.values()) == 500


def test_builtin_repeats_no_file_and_holds_out_whole_test_suites_of_which_no_copy_can_be_read() -> None:
    files = texts.builtin_files()
    assert "torch/version.py" not in files and "torch/nn/modules/linear.py" in files  # builds differ in the first
    found = by_split("builtin", files)
    assert disjoint(found) and all(set(counts.values()) == {1} for counts in found.values())
    assert found["val"] and found["test"]
    assert abs(sum(found["val"].values()) - sum(found["test"].values())) < 100
    suites = [path for path in corpora.held_out() if path != corpora.cache_folder()]
    below = {file for file, path in files.items() if any(path.is_relative_to(suite) for suite in suites)}
    assert below == {file for file in files if texts.is_held_out(file)}
    assert {file.split("/")[0] for file in below} == {"sympy", "networkx"}
    read = [path.read_text("utf-8", "replace") for file, path in files.items() if file not in below]
    readable = {"".join(text.split()) for text in read}
    assert not readable & (found["val"].keys() | found["test"].keys())


LIKE_A_TRIAL = """
import json, sys
import torch, sympy, networkx, torch._inductor.compile_fx, torch.nn.attention.flex_attention, torch.utils.data
double = torch.compile(lambda x, n: x * n + x.shape[0], dynamic=True, backend="aot_eager")
double(torch.ones(3), 2), double(torch.ones(5), 3)
sympy.simplify(sympy.Symbol("x") ** 2), networkx.path_graph(3)
print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]))
"""


def test_a_trial_that_compiles_imports_nothing_of_what_is_held_out() -> None:
    ran = subprocess.run([PYTHON, "-c", LIKE_A_TRIAL], capture_output=True, text=True, timeout=120)
    imported = [Path(file) for file in json.loads(ran.stdout.splitlines()[-1])]
    assert any(path.match("sympy/core/*.py") for path in imported), ran.stderr
    folders = corpora.held_out()
    assert not [path for path in imported for folder in folders if path.is_relative_to(folder)]


def test_what_no_trial_may_read_is_named(corpus_path: Path, cache: Path) -> None:
    named = corpora.held_out(str(corpus_path))
    assert cache in named and corpus_path in named
    assert all(path.is_absolute() for path in named)
    assert any(path.match("sympy/core/tests") for path in named)


@pytest.mark.long  # 10 s; its files are tried above
def test_builtin_has_the_sizes_that_design_gives_it(builtin: Data) -> None:
    assert (builtin.name, builtin.vocab_size, builtin.max_seq_len) == ("builtin", 2048, 256)
    assert builtin.train_tokens > 15_000_000
    assert builtin.eval_rows == {"val": 1024, "test": 1024}
    assert min(builtin.rows["val"], builtin.rows["test"]) > 5000
    assert builtin.caveat() == ""
    assert len(builtin.tokenizer().token_byte_values()) == 2047


def test_the_tokenizer_has_seen_no_held_out_text(corpus: Data, corpus_path: Path) -> None:
    files = texts.find_files(str(corpus_path))[0]
    training = [(split, text) for split, text in texts.documents(str(corpus_path), files) if split == "train"]
    content = packing.train_tokenizer(iter(training), texts.text_bytes(files.values()), 512)
    assert content == (corpus.folder / "tokenizer.json").read_bytes()


def test_two_machines_make_the_same_bytes(corpus: Data, corpus_path: Path, tmp_path: Path) -> None:
    for number, (locale, hash_seed) in enumerate((("C", "1"), ("C.UTF-8", "2"))):
        ran = run_prepare(tmp_path / str(number), "--data", str(corpus_path), LC_ALL=locale, PYTHONHASHSEED=hash_seed,
                          PYTHONUTF8="0")
        assert f"data {corpus.hash[:8]}" in ran.stdout, ran.stderr


def test_the_same_text_has_the_same_hash_in_another_cache_and_another_folder(
        corpus: Data, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "elsewhere" / "corpus"
    copy.mkdir(parents=True)
    for path in sorted(corpus_path.iterdir(), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    again = open_data(str(copy))
    assert again.folder != corpus.folder
    assert (again.hash, again.rows) == (corpus.hash, corpus.rows)


def test_jsonl_and_parquet_of_the_same_documents_are_the_same_data(cache: Path, tmp_path: Path) -> None:
    texts = [make_text(i, 400) for i in range(150)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 7}) + "\n\n" for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": [*texts, None, ""]}), tmp_path / "b.parquet")
    assert open_data(str(tmp_path / "a.jsonl")).hash == open_data(str(tmp_path / "b.parquet")).hash


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_a_damaged_page_of_a_parquet_file_is_named(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "b.parquet"
    rows = pyarrow.table({"text": [make_text(i, 400) for i in range(150)]})
    pyarrow.parquet.write_table(rows, path, compression=compression, use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:5_000] + b"\xff" * 400 + whole[5_400:])
    with pytest.raises(SetupError, match="b.parquet is damaged"):
        list(texts.texts(path))


def test_one_long_text_file_is_many_documents(cache: Path, tmp_path: Path) -> None:
    text = "\n\n".join(make_text(i, 60) for i in range(3000))
    (tmp_path / "book.txt").write_text(text)
    assert "".join(texts.texts(tmp_path / "book.txt")) == text
    assert min(open_data(str(tmp_path / "book.txt")).rows.values()) > 50


def test_an_edited_corpus_has_another_hash_and_the_old_text_the_old_one(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(make_text(1, 60_000))
    first, stat = open_data(str(path)), path.stat()
    assert first.vocab_size == 512
    path.write_text(make_text(2, 60_000))
    assert open_data(str(path)).hash != first.hash
    path.write_text(make_text(1, 60_000))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    again = open_data(str(path))
    assert (again.hash, again.rows) == (first.hash, first.rows)
    assert open_data(str(path)) == again


def test_a_larger_corpus_gets_a_larger_vocabulary_and_longer_rows(cache: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "TIERS", ((1000, corpora.TINY), (1_000_000, corpora.SMALL)))
    (tmp_path / "a.txt").write_text(make_text(3, 150_000))
    data = open_data(str(tmp_path / "a.txt"))
    assert (data.vocab_size, data.max_seq_len) == (2048, 256)


def test_everything_on_disk_is_plain_text_or_tokens(corpus: Data) -> None:
    names = {path.name for path in corpus.folder.iterdir()}
    assert names == {"manifest.json", "tokenizer.json", "train.bin", "val.bin", "test.bin"}
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    assert json.loads((corpus.folder / "tokenizer.json").read_text())["pattern"] == packing.PATTERN
    for file, digest in manifest["files"].items():
        assert hashlib.sha256((corpus.folder / file).read_bytes()).hexdigest() == digest
    assert len(manifest["sources"]) == 200
    assert "pickle" not in (ROOT / "lab" / "packing.py").read_text().replace("never a pickle", "")


# Interruptions --------------------------------------------------------------------------------------------------------

DIE_AT_REPLACE = """
import os, sys
from lab.corpus import open_data
real = os.replace
for writes in range(20):
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 9: break
        continue
    def replace(source, target):
        global writes
        if not writes: os._exit(9)
        writes -= 1
        real(source, target)
    os.replace = replace
    print(open_data(sys.argv[1]).hash, flush=True)
    os._exit(0)
print(code, writes)
"""


def test_a_kill_before_any_of_the_writes_is_made_good_by_the_same_command(corpus: Data, corpus_path: Path,
                                                                          tmp_path: Path) -> None:
    """Each start dies one write later, on what the last one left: tokenizer, three splits, manifest."""
    ran = subprocess.run([PYTHON, "-c", DIE_AT_REPLACE, str(corpus_path)], cwd=ROOT, text=True, capture_output=True,
                         env=os.environ | {"AUTORESEARCH_CACHE": str(tmp_path)}, timeout=60)
    assert ran.stdout.splitlines() == [corpus.hash, "0 5"], ran.stderr
    assert not list(tmp_path.rglob(".*.new"))


@pytest.mark.parametrize("file", ["train.bin", "val.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "one byte"])
def test_a_damaged_file_is_prepared_again(corpus: Data, corpus_path: Path, file: str, damage: str) -> None:
    path = corpus.folder / file
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 3] ^= 0x55
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else broken)
    again = open_data(str(corpus_path))
    assert again.hash == corpus.hash
    assert file == "manifest.json" or path.read_bytes() == whole


def test_two_preparers_at_once_prepare_it_once(corpus: Data, corpus_path: Path, tmp_path: Path) -> None:
    command = [PYTHON, "prepare.py", "--data", str(corpus_path)]
    both = [subprocess.Popen(command, cwd=ROOT, env=os.environ | {"AUTORESEARCH_CACHE": str(tmp_path)}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(f"data {corpus.hash[:8]}" in out for out, _ in outputs)
    assert sum("tokenizing" in out for out, _ in outputs) == 1


def test_opening_a_prepared_corpus_from_many_processes_at_once_works(corpus: Data, corpus_path: Path) -> None:
    os.utime(corpus.folder / "train.bin")  # the files look changed: each process reads them
    many = [subprocess.Popen([PYTHON, "prepare.py", "--data", str(corpus_path)], cwd=ROOT, stdout=subprocess.PIPE)
            for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in many]
    assert len({out.splitlines()[-1] for out in outputs}) == 1  # before it, who waited says so
    assert [process.returncode for process in many] == [0] * 4


# climbmix from a loopback server --------------------------------------------------------------------------------------


class Shards(http.server.ThreadingHTTPServer):
    """Serves small shards with Range; `cut` says after how many bytes an answer breaks off, by request number."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str | None]] = []
        self.cut: dict[int, int] = {}
        self.status: dict[int, int] = {}
        self.body: bytes | None = None
        numbers = (6542, 6541, *range(corpora.SHARDS + 1))
        self.shards = {f"shard_{number:05}.parquet": shard(i) for i, number in enumerate(numbers)}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/main"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, name, wanted = self.server, self.path.removeprefix("/main/"), self.headers.get("Range")
        number = len(server.asked)
        server.asked.append((name, wanted))
        body = server.shards[name] if server.body is None else server.body
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(body) or number in server.status:
            self.send_error(server.status.get(number, 416))
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: server.cut.get(number)])

    def log_message(self, *_: object) -> None:
        pass


def shard(number: int) -> bytes:
    rng = random.Random(number)
    texts = [make_text(rng.randrange(10**6), rng.randrange(20, 900)) for _ in range(130)]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def all_shards() -> Iterator[Shards]:
    server = Shards()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(all_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    all_shards.asked, all_shards.cut, all_shards.status, all_shards.body = [], {}, {}, None
    monkeypatch.setenv("AUTORESEARCH_ENDPOINT", all_shards.url)
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(texts, "RETRY_WAITS_S", (0.01,) * 6)
    return all_shards


def test_climbmix_comes_validation_first_and_only_once(server: Shards) -> None:
    data = open_data("climbmix")
    assert [name for name, _ in server.asked] == list(server.shards)[:14]
    assert [name for name, _ in server.asked[:2]] == ["shard_06542.parquet", "shard_06541.parquet"]
    assert (data.vocab_size, data.max_seq_len) == (8192, 2048)
    assert min(data.rows.values()) >= corpora.MIN_ROWS
    manifest = json.loads((data.folder / "manifest.json").read_text())
    bodies = list(server.shards.values())[:14]
    assert [size for size, _ in manifest["sources"].values()] == [len(body) for body in bodies]
    assert data.train_tokens == data.rows["train"] * 2048
    assert open_data("climbmix") == data
    assert len(server.asked) == 14


def test_climbmix_splits_are_its_shards(server: Shards) -> None:
    data = open_data("climbmix")
    held_out = pyarrow.parquet.read_table(io.BytesIO(server.shards["shard_06542.parquet"]))["text"].to_pylist()
    whole = "\0".join(held_out)
    bos, encoding = data.vocab_size - 1, data.tokenizer()
    for row in data.split("val"):
        for document in np.split(row, np.flatnonzero(row == bos))[1:]:
            assert encoding.decode_bytes(document[1:].tolist()).decode("utf-8", "ignore") in whole


def test_a_half_downloaded_shard_goes_on_where_it_ended(server: Shards, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "climbmix"
    folder.mkdir(parents=True)
    whole = server.shards["shard_06542.parquet"]
    (folder / "shard_06542.parquet.part").write_bytes(whole[:5000])
    open_data("climbmix")
    assert server.asked[0] == ("shard_06542.parquet", "bytes=5000-")
    assert (folder / "shard_06542.parquet").read_bytes() == whole
    assert not list(folder.glob("*.part"))


def test_answers_that_break_off_are_continued(server: Shards) -> None:
    server.cut, server.status = {0: 70_000, 1: 66_000, 4: 100}, {2: 503, 5: 429}
    data = open_data("climbmix")
    assert [wanted for _, wanted in server.asked[:4]] == ["bytes=0-", "bytes=65536-", "bytes=131072-", "bytes=131072-"]
    assert data.shards == corpora.SHARDS
    for name, body in list(server.shards.items())[:14]:
        assert (corpora.cache_folder() / "climbmix" / name).read_bytes() == body


def test_more_shards_change_the_training_rows_alone(server: Shards) -> None:
    few, more = open_data("climbmix", shards=2), open_data("climbmix", shards=13)
    assert (few.shards, more.shards) == (2, 13) and few.hash != more.hash
    assert more.train_tokens > 5 * few.train_tokens
    for file in ("tokenizer.json", "val.bin", "test.bin"):
        assert (few.folder / file).read_bytes() == (more.folder / file).read_bytes()
    asked = len(server.asked)
    assert asked == 15  # no shard twice
    assert open_data("climbmix", shards=2) == few
    assert corpora.remembered(more.hash[:8]) == ("climbmix", 13)
    asked_for, rows = argparse.Namespace(data=None, shards=None), [Row("c", 1.0, data=more.hash[:8])]
    assert opening.settle_data(ROOT, asked_for, rows, "t") == ("climbmix", 13)
    asked_for.shards = 2
    with pytest.raises(SetupError, match="measured on 13 shards, not 2: leave --shards out"):
        opening.settle_data(ROOT, asked_for, rows, "t")
    assert len(server.asked) == asked


def test_a_part_longer_than_the_file_is_fetched_anew(server: Shards, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "climbmix"
    folder.mkdir(parents=True)
    (folder / "shard_06542.parquet.part").write_bytes(b"x" * 10**6)
    open_data("climbmix")
    assert (folder / "shard_06542.parquet").read_bytes() == server.shards["shard_06542.parquet"]


@pytest.mark.parametrize("fault", ["404", "a page", "always cut", "out of reach"])
def test_an_endpoint_that_is_wrong_is_one_line(server: Shards, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "404":
        server.status = dict.fromkeys(range(99), 404)
    elif fault == "a page":
        server.body = b"<html>log in to this network</html>"
    elif fault == "always cut":
        server.cut = dict.fromkeys(range(99), 0)
    else:
        monkeypatch.setenv("AUTORESEARCH_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SetupError) as raised:
        open_data("climbmix")
    assert "--data builtin" in str(raised.value) and "\n" not in str(raised.value)
    assert len(server.asked) == {"404": 1, "out of reach": 0}.get(fault, 6)


# Bad input ------------------------------------------------------------------------------------------------------------


def parquet(path: Path, **columns: list) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


BAD_INPUT = {
    "no such path": (lambda folder: None, "builtin, climbmix"),
    "an empty folder": (lambda folder: folder.mkdir(), "no text in"),
    "other files": (lambda folder: (folder.mkdir(), (folder / "a.csv").write_text("a,b\n")), "no text in"),
    "an empty file": (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("")), "too small"),
    "a short text": (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text(make_text(1, 900))), "too small"),
    "not UTF-8": (lambda folder: (folder.mkdir(), (folder / "a.txt").write_bytes(b"caf\xe9 " * 99)), "not UTF-8"),
    "no JSON": (lambda folder: (folder.mkdir(), (folder / "a.jsonl").write_text('{"text": "a"}\n{"te')), "line 2"),
    "JSON without text": (lambda folder: (folder.mkdir(), (folder / "a.jsonl").write_text('{"t": 1}\n')), "line 1"),
    "JSON with a number": (lambda folder: (folder.mkdir(), (folder / "a.jsonl").write_text('{"text": 1}\n')), "line 1"),
    "a JSON list": (lambda folder: (folder.mkdir(), (folder / "a.jsonl").write_text("[1]\n")), "line 1"),
    "no parquet": (lambda folder: (folder.mkdir(), (folder / "a.parquet").write_text("PAR1")), "not a parquet"),
    "another column": (lambda folder: (folder.mkdir(), parquet(folder / "a.parquet", body=["a"])), '"text"'),
    "a column of numbers": (lambda folder: (folder.mkdir(), parquet(folder / "a.parquet", text=[1])), '"text"'),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_that_says_what_and_what_to_do(case: str, cache: Path, tmp_path: Path) -> None:
    make, said = BAD_INPUT[case]
    make(tmp_path / "bad")
    with pytest.raises(SetupError) as raised:
        open_data(str(tmp_path / "bad"))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value) and ";" in str(raised.value)


def test_bad_input_at_the_command_line_exits_2_without_a_traceback(tmp_path: Path) -> None:
    ran = run_prepare(tmp_path, "--data", "nowhere")
    assert ran.returncode == 2
    said = f"prepare.py: no corpus {str(ROOT / 'nowhere')!r}; use builtin, climbmix, or a file or folder that exists\n"
    assert ran.stderr == said


def test_a_full_disk_is_one_line(corpus: Data, corpus_path: Path, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / corpus.folder.name
    folder.mkdir()
    (folder / ".val.bin.new").symlink_to("/dev/full")  # a device that is always full
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match="no disk space left"):
        open_data(str(corpus_path))
    (folder / ".val.bin.new").unlink()
    assert open_data(str(corpus_path)).hash == corpus.hash


def test_a_cache_that_cannot_be_written_is_one_line(corpus_path: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SetupError, match=os.strerror(errno.ENOTDIR) + ".* set AUTORESEARCH_CACHE"):
        open_data(str(corpus_path))


# By hand --------------------------------------------------------------------------------------------------------------


def test_by_hand_prints_whole_lines_and_what_was_prepared(corpus: Data, corpus_path: Path, tmp_path: Path) -> None:
    ran = run_prepare(tmp_path, "--data", str(corpus_path))
    assert ran.returncode == 0
    assert corpus.hash[:8] in ran.stdout and "vocabulary 512" in ran.stdout
    assert "\r" not in ran.stdout and "tokenizing" in ran.stdout and ran.stderr == ""
    again = run_prepare(tmp_path, "--data", str(corpus_path))
    assert again.stdout == ran.stdout.splitlines(keepends=True)[-1]


def test_on_a_terminal_there_is_a_clock(corpus_path: Path, tmp_path: Path) -> None:
    ours, its = os.openpty()
    ran = subprocess.run([PYTHON, "prepare.py", "--data", str(corpus_path)], cwd=ROOT, stdout=its, timeout=60,
                         env=os.environ | {"AUTORESEARCH_CACHE": str(tmp_path), "TERM": "xterm"})
    os.close(its)
    assert ran.returncode == 0
    assert re.search(r"[a-z] [0-9]+%, [0-9]+ s", os.read(ours, 1 << 16).decode())
    os.close(ours)


def test_the_default_without_a_gpu_is_builtin_and_importing_loads_no_torch() -> None:
    code = "import sys; from lab.corpus import default_data; print(default_data(), 'torch' in sys.modules)"
    ran = subprocess.run([PYTHON, "-c", code], cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, text=True,
                         capture_output=True, timeout=60)
    assert ran.stdout == "builtin False\n", ran.stderr


# What a reader is told ------------------------------------------------------------------------------------------------


def test_a_folder_says_what_was_read_and_what_was_not(cache: Path, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(make_text(i, 3000))
    for name in ("a.md", "b.md", "c.gz"):
        (tmp_path / name).write_text("not read")
    data = open_data(str(tmp_path))
    assert data.read == "12 files read, 3 skipped (.md 2, .gz 1)"
    assert data.read in data.summary()
    (tmp_path / "c.gz").unlink()
    assert open_data(str(tmp_path)).read == "12 files read, 2 skipped (.md 2)"


def test_a_small_val_split_says_what_its_numbers_are_worth(corpus: Data) -> None:
    small = replace(corpus, rows=corpus.rows | {"val": 50})
    assert "val has 50 rows" in small.caveat() and "\n" not in small.caveat()
    assert replace(corpus, rows=corpus.rows | {"val": 200}).caveat() == ""


def test_a_corpus_is_found_again_by_its_hash_and_from_any_folder(corpus: Data, corpus_path: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corpus_path.parent)
    source = corpora.absolute(corpus_path.name)
    monkeypatch.chdir(tmp_path)
    assert open_data(source) == corpus
    assert corpora.absolute("builtin") == "builtin"
    found, shards = corpora.remembered(corpus.hash[:8])
    assert open_data(found).hash == corpus.hash and shards == 0
    assert corpora.remembered("0" * 8) is None


def test_other_data_than_the_sessions_is_refused_with_what_is_different(corpus: Data) -> None:
    rows, edited = [Row("c", 1.0, data=corpus.hash[:8])], replace(corpus, hash="0" * 64)
    opening.check_data(corpus, rows, "t")
    opening.check_data(edited, [], "t")
    with pytest.raises(SetupError, match="has changed since session t was measured on it: put its text back"):
        opening.check_data(edited, rows, "t")
    with pytest.raises(SetupError, match="name the same --data, or start another session with --tag t-2"):
        opening.check_data(replace(edited, source="/elsewhere"), rows, "t")
