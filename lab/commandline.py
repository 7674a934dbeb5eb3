"""The command line of agent.py: its words, its options, and what is refused before anything starts."""

import argparse
from collections.abc import Sequence

from lab.corpus import SHARDS, absolute
from lab.model import DEFAULT_MODEL
from lab.texts import MAX_SHARDS
from prepare import DEFAULT_BUDGET_S

TUNER_SHARE = 0.3  # of the turns, beside an LLM; tests/bench/bench_tuner.py


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def shards(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_SHARDS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MAX_SHARDS}")
    return value


def prices(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) not in (2, 4) or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not IN,OUT or IN,OUT,CACHE_WRITE,CACHE_READ")
    return values


def parse(arguments: Sequence[str] | None = None, about: str = "") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.py", description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("word", nargs="?", choices=("research", "report", "confirm"), default="research",
                        help="what to do (default: research)")
    limits = parser.add_argument_group("when to stop (default: when you press Ctrl-C)")
    limits.add_argument("--experiments", type=count, metavar="N", help="after N experiments, the baseline not counted")
    limits.add_argument("--hours", type=positive, metavar="H", help="after H hours, the last part kept for confirm")
    limits.add_argument("--max-usd", type=positive, metavar="X", help="when the model's calls have cost X dollars")
    session = parser.add_argument_group("the session (the same for all its experiments)")
    session.add_argument("--budget", type=positive, metavar="S",
                         help=f"seconds of training a trial (default: the session's, at first {DEFAULT_BUDGET_S:g})")
    session.add_argument("--tag", metavar="T", help="work on branch autoresearch/T (default: the one checked out, "
                         "else a new one named after today)")
    session.add_argument("--data", metavar="D", help="climbmix, builtin, or a path to .txt, .jsonl or .parquet files "
                         "(default: climbmix with a CUDA GPU, else builtin)")
    session.add_argument("--shards", type=shards, metavar="N", help=f"of climbmix for training (default: {SHARDS})")
    who = parser.add_argument_group("who proposes")
    who.add_argument("--researcher", choices=("auto", "llm", "tuner"), default="auto",
                     help="auto: the model if there is a key, else the tuner; llm: only the model; tuner: no model")
    who.add_argument("--model", default=DEFAULT_MODEL, metavar="M", help=f"default: {DEFAULT_MODEL}")
    who.add_argument("--effort", choices=("low", "medium", "high", "xhigh", "max"), help="how long the model thinks")
    who.add_argument("--fallback", metavar="M", help="the model that answers when the first one declines: a name, or "
                     "\"default\" for the server's own choice")
    who.add_argument("--prices", type=prices, metavar="IN,OUT",
                     help="dollars per million tokens, of a model that the price table lacks")
    who.add_argument("--researcher-command", metavar="CMD",
                     help="in place of the API, any program that reads the prompt on stdin and answers on stdout")
    who.add_argument("--tuner-share", type=share, default=TUNER_SHARE, metavar="F",
                     help=f"the tuner's share of the turns beside a model (default: {TUNER_SHARE:g})")
    parser.add_argument("--each", action="store_true",
                        help="confirm: also every kept change, taken out of the final train.py alone")
    parser.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.data = options.data and absolute(options.data)  # before anybody changes the working directory
    return options
