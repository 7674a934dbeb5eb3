"""What must hold before a session starts: program.md, train.py, device, budget, model, data and
sandbox.

Promises: a start that is refused is one SetupError with nothing changed; the cheap checks come
before the dear ones.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from lab import card, corpus, edits, ledger, sandbox
from lab.corpus import SHARDS, SIZES, Data, cache_folder, default_data, open_data, progress_bar
from lab.ledger import Row, SetupError, Status, one_line
from lab.memory import read_program
from lab.model import Researcher, Unavailable, has_key
from lab.session import Session
from lab.store import Store
from prepare import DEFAULT_BUDGET_S, default_device


def open_session(root: Path, options: argparse.Namespace,
                 say: Callable[[str], None]) -> tuple[Store, Data, Researcher | None]:
    """The session on its branch, its data and its model. Raises SetupError with nothing changed."""
    read_program(root)
    check_device()
    store = Store.open(root, options.tag, datetime.now().strftime("%b%d").lower())
    try:
        rows = store.rows()
        if options.word == "confirm" and not rows:
            raise SetupError("nothing to confirm yet: run python agent.py first")
        check_train(store.train_code())
        settle_budget(options, rows, store.tag)
        researcher = pick_researcher(options, root / "runs" / store.tag, say)
        data = find_data(root, options, rows)
        check_data(rows, data, store.tag)
        done = [*store.begin(), *store.recover()]
    except SetupError:
        store.release()
        raise
    warnings = row_warnings(rows[0], data) if rows else []
    for line in (*start_lines(options, data), *done, *warnings):
        say(line)
    return store, data, researcher


def check_train(code: str) -> None:
    try:
        edits.check(code, ())
    except edits.ProposalError as error:
        raise SetupError(f"train.py cannot be the baseline: {one_line(str(error))} Mend it and commit.") from None


def check_device() -> None:
    device = os.environ.get("AUTORESEARCH_DEVICE", "")
    if device not in ("", "cpu", "cuda", "mps"):
        raise SetupError(f"AUTORESEARCH_DEVICE is {one_line(device, 20)!r}: set it to cpu, cuda or mps; which card is "
                         "used is said by CUDA_VISIBLE_DEVICES")
    if why := card.check(default_device()):
        raise SetupError(why)


def find_data(root: Path, options: argparse.Namespace, rows: Sequence[Row]) -> Data:
    """The corpus that was named, else the session's own, else the default here. Raises SetupError."""
    known = corpus.remembered(rows[0].data) if rows else None
    if known and options.data in (None, known[0]):
        source, shards = known
    else:
        source, shards = options.data or default_data(), 0
    own = [] if source in SIZES else [Path(source)]
    if path := sandbox.exposed([root, cache_folder(), *own]):
        raise SetupError(f"every trial could read {path}, which lies below what Python needs: move it elsewhere"
                         + (" with AUTORESEARCH_CACHE" if path == cache_folder() else ""))
    with progress_bar() as report:
        return open_data(source, report, options.shards or shards or SHARDS)


def start_lines(options: argparse.Namespace, data: Data) -> list[str]:
    """What the user should know of data and sandbox before the first trial."""
    lines = [data.summary(), data.caveat()]
    if options.data is None and data.name == "builtin":
        lines.append("no CUDA GPU: the small CPU profile, whose numbers compare only with themselves")
    level = sandbox.level()
    if level == "none":
        lines.append("WARNING: sandbox: none. This kernel has no Landlock: a trial can read and write what you can")
    elif level.startswith("ns"):
        lines.append(f"sandbox: {level}, a trial sees its own folder and no network")
    else:
        lines.append(f"WARNING: sandbox: {level}, without namespaces: system calls are filtered, but a trial shares "
                     "this machine's view of processes and network")
    return [line for line in lines if line]


def row_warnings(row: Row, data: Data) -> list[str]:
    """A line where the baseline, in one budget, sees the training data more than twice."""
    n_passes = corpus.passes(data, row.tokens_m * 1e6)
    if row.experiment or row.status is not Status.KEEP or n_passes <= 2:
        return []
    mend = "more --shards" if data.source == "climbmix" else "more text"
    return [f"WARNING: the baseline sees the training data {n_passes:.1f} times in one budget; past 2, models of this "
            f"kind learn it by heart: start a session with {mend}"]


def settle_budget(options: argparse.Namespace, rows: Sequence[Row], tag: str) -> None:
    """Take the budget from the session's rows where none was given. Raises SetupError where they have another."""
    budget_s = rows[0].budget if rows else options.budget or DEFAULT_BUDGET_S
    if options.budget not in (None, budget_s):
        raise SetupError(f"session {tag} has a budget of {budget_s:g} s, not {options.budget:g}; numbers would not "
                         f"compare: start another with --tag {tag}-{options.budget:g}s")
    options.budget = budget_s


def check_data(rows: Sequence[Row], data: Data, tag: str) -> None:
    if rows and rows[0].data != data.hash[:8]:
        raise SetupError(f"session {tag} was measured on data {rows[0].data}, not {data.hash[:8]} ({data.name}): name "
                         f"the same --data, or start another session with --tag {tag}-2")


def pick_researcher(options: argparse.Namespace, runs: Path,
                    say: Callable[[str], None]) -> Researcher | None:
    """The model, or None for the tuner alone. Raises SetupError when a model was demanded and cannot be had."""
    if options.researcher == "tuner" or options.word == "confirm":
        return None
    if not (options.researcher_command or has_key()):
        if options.researcher == "llm":
            raise SetupError("--researcher llm needs ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL or --researcher-command")
        say("no ANTHROPIC_API_KEY: the built-in tuner proposes instead of a model")
        return None
    researcher = Researcher(options.model, options.effort, options.researcher_command, options.prices,
                            options.fallback, runs / "calls.jsonl")
    try:
        researcher.check()
    except Unavailable as error:
        if error.fatal:
            raise SetupError(str(error)) from None
        say(f"{error}; " + ("it is waited for" if options.researcher == "llm" else "the tuner works until it answers"))
    if options.researcher == "auto" and options.tuner_share:
        say(f"{researcher.name} proposes; the tuner takes {options.tuner_share:.0%} of the turns, more only while the "
            "model is out")
    return researcher


def opened(root: Path, store: Store, data: Data, budget_s: float) -> Session:
    """The session as its rows tell it at the start."""
    rows = tuple(store.rows())
    history, runs = tuple(ledger.experiments(rows)), root / "runs" / store.tag
    runs.mkdir(parents=True, exist_ok=True)
    best = ledger.incumbent(history)
    corpus = {"corpus": data.name, "VOCAB_SIZE": data.vocab_size, "MAX_SEQ_LEN": data.max_seq_len,
              "training tokens": data.rows["train"] * data.max_seq_len}
    code = store.code(best.number) if best else ""
    return Session(store.tag, runs, budget_s, corpus, rows, history, code, read_program(root))
