"""From text to rows: a tokenizer, tokens, rows of one length in random order.

Promises that equal documents give equal bytes, whatever the number of cores.
"""

import base64
import json
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from lab.ledger import write_durably
from lab.texts import Documents

TOKENIZER_BYTES = 91_000_000  # text that the tokenizer is trained on: 3 s of rustbpe's time
BUFFER = 1000                 # documents that a row may choose from, the field's number
CHUNK = 1024                  # documents that are tokenized side by side
SLICE_CHARS = 1 << 16         # text that is encoded at once: 3 M blanks overflow the pattern's stack
SHUFFLE_SEED = 2
# GPT-4's split pattern, but with numbers of one or two digits: 110 possible ones instead of 1110
PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BOS = "<|bos|>"               # begins every document; the only special token, with the last id


def train_tokenizer(documents: Documents, n_bytes: int, vocab_size: int) -> bytes:
    """Learn byte pairs from a sample of n_bytes of training text. Text, never a pickle."""
    import rustbpe

    training = (text for split, text in documents if split == "train")
    sample = islice(training, 0, None, max(1, -(-n_bytes // TOKENIZER_BYTES)))
    trainer = rustbpe.Tokenizer()
    slices = (part for text in sample for part in slices_of(text))
    trainer.train_from_iterator(slices, vocab_size - 1, buffer_size=512, pattern=PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = [base64.b64encode(bytes(token)).decode() for token, _ in ranks]
    return json.dumps({"pattern": PATTERN, "tokens": tokens}, indent=0).encode()


def load_tokenizer(path: Path, vocab_size: int) -> "tiktoken.Encoding":  # noqa: F821
    """The tokenizer of a corpus; those that tiktoken knows by name need the network."""
    import tiktoken

    content = json.loads(path.read_text())
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(content["tokens"])}
    return tiktoken.Encoding("autoresearch", pat_str=content["pattern"], mergeable_ranks=ranks,
                             special_tokens={BOS: vocab_size - 1})


def slices_of(text: str) -> Iterator[str]:
    return (text[i : i + SLICE_CHARS] for i in range(0, len(text), SLICE_CHARS))


def tokenize(encoding: "tiktoken.Encoding", documents: Documents, cut: int | None  # noqa: F821
             ) -> Iterator[tuple[str, np.ndarray]]:
    """(split, BOS and tokens) in order; a document of more than `cut` tokens becomes several."""

    def encode(document: tuple[str, str]) -> np.ndarray:
        parts = [encoding.encode_to_numpy(part, disallowed_special=()) for part in slices_of(document[1])]
        return np.concatenate(parts)

    with ThreadPoolExecutor() as pool:  # tiktoken works outside the interpreter's lock
        while chunk := list(islice(documents, CHUNK)):
            for (split, _), tokens in zip(chunk, pool.map(encode, chunk), strict=True):
                step = cut or len(tokens)
                for start in range(0, len(tokens), step):
                    part = np.append(encoding.n_vocab - 1, tokens[start : start + step])
                    yield split, part.astype(np.uint16)


def best_fit(documents: Iterable[np.ndarray], row_tokens: int) -> Iterator[np.ndarray]:
    """Best-fit packing: no padding, and a choice among 1000 documents leaves little to crop.

    A row takes the longest document that fits whole, the oldest of equal ones. When none fits, the
    shortest is cropped to fill the row, so every row begins with BOS. An unfilled last row is dropped.
    """
    numbered = enumerate(documents)
    waiting: list[tuple[int, int, np.ndarray]] = []  # (length, number, document), sorted
    row = np.empty(0, np.uint16)
    while True:
        for number, document in islice(numbered, BUFFER - len(waiting)):
            insort(waiting, (len(document), number, document))
        if not waiting:
            return
        room = row_tokens - len(row)
        longest = max(0, bisect_right(waiting, (room, math.inf)) - 1)
        _, _, document = waiting.pop(bisect_left(waiting, waiting[longest][:1]))  # the oldest of that length
        row = np.concatenate([row, document[:room]])
        if len(row) == row_tokens:
            yield row
            row = row[:0]


def pack(tokenized: Iterable[tuple[str, np.ndarray]], folder: Path, row_tokens: int) -> dict[str, int]:
    """Write train.bin, val.bin and test.bin; return the rows of each split. In memory: 0.2 GB a shard."""
    documents: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for split, tokens in tokenized:
        documents[split].append(tokens)
    rows = {split: [*best_fit(mine, row_tokens)] for split, mine in documents.items()}
    for split, mine in rows.items():
        rng = np.random.RandomState(SHUFFLE_SEED)  # its stream is the same in every version of numpy
        order = rng.permutation(len(mine))  # so that the first n are a fair sample
        write_durably(folder / f"{split}.bin", (mine[i].data for i in order))
    return {split: len(mine) for split, mine in rows.items()}
