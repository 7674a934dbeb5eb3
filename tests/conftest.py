"""What every test shares: the checkout on the path, one cache of prepared corpora for the whole run, no key, no GPU."""

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["GIT_TEST_FSYNC"] = "false"  # git's own switch; no test pulls the plug, and a busy disk takes 50 ms

import stand_in  # noqa: E402

from lab.corpus import Data, open_data  # noqa: E402

SYLLABLES = ["ka", "lo", "mi", "ru", "ten", "sa", "ví", "or", "an", "the", "ing", "7", "42", "do", "er", "st"]
WORDS = [random.Random(i).choice(SYLLABLES) + random.Random(i + 999).choice(SYLLABLES) * (i % 3) for i in range(1, 400)]


def make_text(seed: int, n_words: int) -> str:
    """Text that a model can learn something about: each word says much about the next."""
    dice, words, at = random.Random(seed), [], 0
    for _ in range(n_words):
        at = (at * 3 + dice.choice((1, 1, 1, 5, 11))) % len(WORDS)
        words.append(WORDS[at] + dice.choice(("", "", "", ",", ".", "\n", "\n\n")))
    return " ".join(words)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the default tests in two processes, a file in one; a chosen or long test, or one with -s, in this one."""
    options = config.option
    is_default = options.markexpr == "not long" and not options.keyword and options.capture != "no"
    is_worker = hasattr(config, "workerinput")
    if config.pluginmanager.hasplugin("xdist") and is_default and not is_worker and options.numprocesses is None:
        options.numprocesses, options.dist = 2, "loadfile"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """AUTORESEARCH_CACHE for this process and all that it starts."""
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("AUTORESEARCH_CACHE")
    os.environ["AUTORESEARCH_CACHE"] = str(folder)
    yield folder
    os.environ.pop("AUTORESEARCH_CACHE")
    if before is not None:
        os.environ["AUTORESEARCH_CACHE"] = before


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 short .txt files, 0.9 MB: the tiny tier, vocabulary 512 and rows of 128 tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(200):
        (folder / f"{i:03}.txt").write_text(make_text(i, 800))
    return folder


@pytest.fixture(scope="session")
def corpus(cache: Path, corpus_path: Path) -> Data:
    """The small corpus that most tests train on, prepared once; corpus_path is its --data."""
    return open_data(str(corpus_path))


@pytest.fixture(scope="session")
def builtin(cache: Path) -> Data:
    """The builtin corpus, prepared once (10 s)."""
    return open_data("builtin")


@pytest.fixture(scope="session")
def cheap_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose trials cost a tenth of a second; to be copied."""
    return stand_in.make(tmp_path_factory.mktemp("cheap") / "checkout")


@pytest.fixture
def root(cheap_checkout: Path, tmp_path: Path) -> Path:
    """Such a checkout of a test's own."""
    return Path(shutil.copytree(cheap_checkout, tmp_path / "checkout", symlinks=True))


@pytest.fixture
def arguments(corpus_path: Path) -> tuple[str, ...]:
    """Of a session there, by the tuner."""
    return ("--researcher", "tuner", "--tag", "nov23", "--data", str(corpus_path))


@pytest.fixture(scope="session")
def agents(cheap_checkout: Path, corpus: Data) -> Iterator[stand_in.Agents]:
    """Agents for such checkouts."""
    agents = stand_in.Agents(cheap_checkout)
    yield agents
    agents.close()


@pytest.fixture(scope="session")
def cheap_session(cheap_checkout: Path, agents: stand_in.Agents, corpus_path: Path,
                  tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a checkout with a session nov23 of four rows at rest; to be copied."""
    root = Path(shutil.copytree(cheap_checkout, tmp_path_factory.mktemp("session") / "checkout", symlinks=True))
    code, out = agents.run(root, "--researcher", "tuner", "--tag", "nov23", "--data", str(corpus_path),
                           "--experiments", "3")
    assert code == 0, out
    return root
