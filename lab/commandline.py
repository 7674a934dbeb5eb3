"""The command line of agent.py: three words and their options. A mistake is one line and exit code 2."""

import argparse
import difflib
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import NoReturn

from lab.corpus import SHARDS, absolute
from lab.model import DEFAULT_MODEL
from lab.texts import MAX_SHARDS
from prepare import DEFAULT_BUDGET_S

MAX_SLOTS = 1024
TUNER_SHARE = 0.3  # of the turns, beside a model; tests/bench/bench_tuner.py
# Defaults of options that a word may not have.
UNASKED = {"experiments": None, "hours": None, "max_usd": None, "budget": None, "data": None, "shards": None,
           "researcher": "tuner", "tag": None, "each": False, "longer": None, "quiet": False, "json": False,
           "notify": None, "gpus": 1, "slots": 1, "ray": None}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line each."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def filled(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: leave it out, or name something")
    return text


def within(least: float, most: float, what: str, kind: type = float) -> Callable[[str], float]:
    """A reader of numbers from `least` to `most`, neither of them infinite."""
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = inf
        if not least <= value <= most or value == inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


def prices(text: str) -> tuple[float, ...]:
    read = within(0, inf, "IN,OUT or IN,OUT,CACHE_WRITE,CACHE_READ in dollars per million tokens")
    words = text.split(",")
    return tuple(map(read, words if len(words) in (2, 4) else [""]))


def n_gpus(text: str) -> int:
    return 0 if text == "all" else int(within(1, MAX_SLOTS, f"all, or a number up to {MAX_SLOTS}", int)(text))


positive = within(1e-9, inf, "a positive number")
hours = within(1e-9, 10_000, "a positive number up to 10 000")
count = within(0, 1e9, "a number of experiments", int)


def parse(arguments: Sequence[str] | None = None, about: str = "") -> argparse.Namespace:
    """The options, `word` among them. Where the first argument is an option, the word is `research`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="agent.py", description=about, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(**UNASKED)
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    parser.add_argument("--version", action="version", version=f"autoresearch {project['version']}")
    commands = parser.add_subparsers(dest="word", metavar="WORD", parser_class=Parser)
    for name, (about_word, add_options) in WORDS.items():
        command = commands.add_parser(name, help=about_word, description=about_word, allow_abbrev=False)
        command.register("type", None, filled)  # the reader of an option that names none
        command.add_argument("--tag", metavar="T", help="the session on branch autoresearch/T (default: the one "
                             "that is checked out, else a new one named after today)")
        if name != "report":
            add_shared(command)
        add_options(command)
    if not words or words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        words.insert(0, "research")
    if not words[0].startswith("-") and words[0] not in WORDS:
        parser.error(f"there is no word {words[0]!r}{did_you_mean(words[0], WORDS)}")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands.choices[options.word]
        known = [name for action in command._actions for name in action.option_strings]
        command.error(f"there is no option {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    if options.word == "research" and options.researcher_command and (options.max_usd or options.prices):
        command = commands.choices[options.word]
        command.error("nobody tells what a command's answers cost: leave --max-usd and --prices out")
    options.data = options.data and absolute(options.data)  # before the working directory changes
    if cache := os.environ.get("AUTORESEARCH_CACHE"):
        os.environ["AUTORESEARCH_CACHE"] = absolute(cache)
    return options


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    near = [name for name in known if name.startswith(wrong)] or difflib.get_close_matches(wrong, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def add_research(parser: Parser) -> None:
    limits = parser.add_argument_group("when to stop (default: when you press Ctrl-C)")
    limits.add_argument("--experiments", type=count, metavar="N", help="after N experiments beside the baseline")
    limits.add_argument("--hours", type=hours, metavar="H", help="after H hours, the last part kept for confirm")
    limits.add_argument("--max-usd", type=positive, metavar="X", help="when the model's calls have cost X dollars")
    session = parser.add_argument_group("the session (the same for all its experiments)")
    session.add_argument("--budget", type=positive, metavar="S",
                         help=f"seconds of training a trial (default: {DEFAULT_BUDGET_S:g}, then the session's)")
    session.add_argument("--shards", type=within(1, MAX_SHARDS, f"from 1 to {MAX_SHARDS}", int), metavar="N",
                         help=f"of climbmix for training (default: {SHARDS})")
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
    who.add_argument("--tuner-share", type=within(0, 1, "between 0 and 1"), default=TUNER_SHARE, metavar="F",
                     help=f"the tuner's share of the turns beside a model (default: {TUNER_SHARE:g})")


def add_report(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the text")
    parser.add_argument("--quiet", action="store_true", help="write the files and print nothing")


def add_confirm(parser: Parser) -> None:
    more = parser.add_mutually_exclusive_group()
    more.add_argument("--each", action="store_true",
                      help="also every kept change, taken out of the final train.py alone")
    more.add_argument("--longer", type=within(1.01, inf, "a number above 1"), metavar="N",
                      help="instead both at N times the budget, one seed each: do order and size of the gain stay?")


def add_shared(parser: Parser) -> None:
    parser.add_argument("--data", metavar="D", help="climbmix, builtin, or a path to .txt, .jsonl or .parquet files "
                        "(default: the session's, at first climbmix with a CUDA GPU, else builtin)")
    parser.add_argument("--notify", metavar="CMD", help="a shell command to run at a new best, a stop or a fault: the "
                        "headline on stdin, facts as JSON in AUTORESEARCH_EVENT, at most ten seconds")
    group = parser.add_argument_group("trials at once (default: one)")
    places = group.add_mutually_exclusive_group()
    places.add_argument("--gpus", type=n_gpus, default=1, metavar="N", help="on N cards of this machine, or on all")
    at_most = f"a number up to {MAX_SLOTS}"
    places.add_argument("--slots", type=within(1, MAX_SLOTS, at_most, int), default=1, metavar="N",
                        help="without a GPU: on N shares of the cores")
    places.add_argument("--ray", metavar="ADDRESS", help="on every GPU of a Ray cluster: auto, or host:port")


WORDS = {
    "research": ("research until stopped (the default)", add_research),
    "report": ("what the rows say: text, progress.png and report.html", add_report),
    "confirm": ("baseline against incumbent, fresh seeds, on the test split", add_confirm),
}
