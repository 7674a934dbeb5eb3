"""From text to rows: train a tokenizer, tokenize, pack the tokens into rows of one length, shuffle the rows.

Promises that equal documents give equal bytes, whatever the number of cores. Knows nothing of where text comes from.
"""

import base64
import json
import os
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from lab.ledger import write_durably
from lab.texts import Documents

TOKENIZER_BYTES = 91_000_000  # text that the tokenizer is trained on: 3 s of rustbpe's time
BUFFER = 1000                 # documents that a row may choose from, the field's number
CHUNK_CHARS = 1 << 20         # text that a thread tokenizes at a time
SLICE_CHARS = 1 << 16         # text that is encoded at once: 3 M blanks in a row overflow the pattern's stack
SHUFFLE_SEED = 2
# GPT-4's way to split text into words, but one or two digits a number: 110 numbers, not 1110, in a small vocabulary
PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BOS = "<|bos|>"               # begins every document; the only special token, with the last id


def train_tokenizer(documents: Documents, n_bytes: int, vocab_size: int) -> bytes:
    """Learn byte pairs from the training documents; of n_bytes of text, a fair sample. Text, never a pickle."""
    import rustbpe

    every = -(-n_bytes // TOKENIZER_BYTES)
    training = (text for split, text in documents if split == "train")
    sample = (text for number, text in enumerate(training) if number % every == 0)
    trainer = rustbpe.Tokenizer()
    slices = (part for text in sample for part in _slices(text))
    trainer.train_from_iterator(slices, vocab_size - 1, buffer_size=512, pattern=PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = [base64.b64encode(bytes(token)).decode() for token, _ in ranks]
    return json.dumps({"pattern": PATTERN, "tokens": tokens}, indent=0).encode()


def load_tokenizer(path: Path, vocab_size: int) -> "tiktoken.Encoding":  # noqa: F821
    """A corpus' own tokenizer; those that tiktoken knows by name need the network."""
    import tiktoken

    content = json.loads(path.read_text())
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(content["tokens"])}
    return tiktoken.Encoding("autoresearch", pat_str=content["pattern"], mergeable_ranks=ranks,
                             special_tokens={BOS: vocab_size - 1})


def tokenize(encoding: "tiktoken.Encoding", documents: Documents, cut: int | None  # noqa: F821
             ) -> Iterator[tuple[str, np.ndarray]]:
    """(split, BOS and tokens) in the order of the documents; one of more than `cut` tokens becomes several.

    Threads are enough, because tiktoken works outside the interpreter's lock. About two chunks a core are in memory.
    """
    n_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(n_threads) as pool:
        ahead: deque[Future] = deque()
        for chunk in _chunks(documents):
            ahead.append(pool.submit(_encode, encoding, chunk, cut))
            if len(ahead) > 2 * n_threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _chunks(documents: Documents) -> Iterator[list[tuple[str, str]]]:
    chunk, size = [], 0
    for split, text in documents:
        chunk.append((split, text))
        size += len(text)
        if size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _encode(encoding: "tiktoken.Encoding", chunk: list[tuple[str, str]], cut: int | None  # noqa: F821
            ) -> list[tuple[str, np.ndarray]]:
    bos, done = encoding.n_vocab - 1, []
    for split, text in chunk:
        parts = [encoding.encode_to_numpy(part, disallowed_special=()) for part in _slices(text)]
        tokens = np.concatenate(parts)
        step = cut or len(tokens)
        for start in range(0, len(tokens), step):
            done.append((split, np.append(bos, tokens[start : start + step]).astype(np.uint16)))
    return done


def _slices(text: str) -> Iterator[str]:
    return (text[i : i + SLICE_CHARS] for i in range(0, len(text), SLICE_CHARS))


class Packer:
    """Best-fit packing, the field's rule: no padding, and a choice of 1000 documents leaves little to crop.

    A row takes the longest document that fits whole, the oldest of equal ones. When none fits, the shortest document
    is cropped to fill the row. Every document begins with BOS, so every row does.
    """

    def __init__(self, row_tokens: int, file: BinaryIO):
        self.file = file
        self.row = np.empty(row_tokens, np.uint16)
        self.filled, self.n_rows, self.n_waiting = 0, 0, 0
        self.lengths: list[int] = []                         # of the waiting documents, sorted, each once
        self.waiting: dict[int, deque[np.ndarray]] = {}      # by length, oldest first

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
        """Move the best-fitting document into the row."""
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
        """Pack the rest, drop the unfilled last row, return the row count."""
        while self.n_waiting:
            self._place()
        self.file.flush()
        return self.n_rows


def pack(tokenized: Iterable[tuple[str, np.ndarray]], folder: Path, row_tokens: int,
         report: Callable[[int, int], None]) -> dict[str, int]:
    """Write train.bin, val.bin and test.bin; return the rows of each split."""
    with ExitStack() as stack:
        packers = {split: Packer(row_tokens, stack.enter_context(TemporaryFile(dir=folder)))
                   for split in ("train", "val", "test")}
        for split, tokens in tokenized:
            packers[split].add(tokens)
        rows = {split: packer.finish() for split, packer in packers.items()}
        for done, (split, packer) in enumerate(packers.items()):
            report(done, len(packers))
            write_durably(folder / f"{split}.bin", shuffled(packer.file, row_tokens))
    return rows


def shuffled(file: BinaryIO, row_tokens: int) -> Iterator[memoryview]:
    """Rows in a fixed random order, so that the first n are a fair sample; a few at a time, so that any number fits."""
    if not os.fstat(file.fileno()).st_size:  # no memory map of an empty file
        return
    rows = np.memmap(file, np.uint16, "r").reshape(-1, row_tokens)
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(rows))  # its numbers never change with numpy
    for i in range(0, len(rows), 4096):
        yield rows[order[i : i + 4096]].data
