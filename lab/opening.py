"""What must hold before a session starts, and while it runs.

A start that is refused is one SetupError with nothing changed, and cheap checks come before dear ones:
device, branch, train.py, budget, the corpus' name and the model before any data is prepared. While the session runs, a
fault of the user's or of the machine becomes a SetupError before it becomes a row.
"""

import argparse
import errno
import hashlib
import math
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from lab import baseline, card, corpus, edits, ledger, restrict, runner, sandbox
from lab.checkout import FULL_BYTES
from lab.corpus import SHARDS, SIZES, Data, Report, cache_folder, default_data, open_data
from lab.fleet import slots_here
from lab.ledger import Ending, Row, SetupError, Status, Trial, one_line
from lab.memory import billed_usd, read_program
from lab.model import Purse, Researcher, Unavailable, has_key
from lab.session import Session
from lab.store import Store
from lab.texts import find_files
from prepare import DEFAULT_BUDGET_S, default_device

Say = Callable[[str], None]


def open_session(root: Path, options: argparse.Namespace, say: Say,
                 report: Report) -> tuple[Store, Session, Data, Researcher | None]:
    """The session on its branch, its data and its model. Raises SetupError with nothing changed."""
    read_program(root)
    check_limits()
    try:
        store = Store.open(root, options.tag, datetime.now().strftime("%b%d").lower())
    except OSError as error:
        raise SetupError(f"{one_line(str(error))}: put that right, then start again") from None
    try:
        rows = store.rows()
        check_baseline(options.word, rows, store.tag)
        check_train(store.train_code())
        settle_budget(options, rows, store.tag)
        source, shards = settle_data(root, options, rows, store.tag)
        settle_places(options, rows, store.tag, report)
        researcher = pick_researcher(options, rows, root / "runs" / store.tag, say, report)
        data = open_data(source, report, shards)
        check_data(data, rows, store.tag)
        if options.longer:
            check_longer(options.longer, rows, data)
        done = [*store.begin(), *store.recover()]
    except SetupError:
        store.release()
        raise
    for line in (*start_lines(options, data), *done, *(row_warnings(rows[0], data) if rows else ())):
        say(line)
    return store, session_of(root, store, data, options.budget), data, researcher


def session_of(root: Path, store: Store, data: Data, budget_s: float) -> Session:
    """The session as its rows tell it at the start."""
    rows, runs = tuple(store.rows()), root / "runs" / store.tag
    history = tuple(ledger.experiments(rows))
    incumbent = ledger.incumbent(history)
    runs.mkdir(parents=True, exist_ok=True)
    sizes = {"corpus": data.name, "VOCAB_SIZE": data.vocab_size, "MAX_SEQ_LEN": data.max_seq_len,
             "training tokens": data.train_tokens}
    code = store.code(incumbent.number) if incumbent else ""
    program = read_program(root)
    if history:  # as the model's last idea had read it, so that a later edit counts as a change
        last = next((e for e in reversed(history) if e.own.source not in ledger.NO_MODEL), history[0])
        program = store.here.show(f"{store.candidate_ref(last.number)}:program.md").decode(errors="replace")
    if not runner.baseline_known(runs):  # damaged, or not there
        (runs / baseline.NAME).unlink(missing_ok=True)
    lost = frozenset({e.number for e in history} - store.numbers())
    return Session(store.tag, runs, budget_s, sizes, rows, history, code, program, lost)


def check_limits() -> None:
    """Raise SetupError for an unknown sandbox level, or a limit on file sizes under which no trial could run."""
    sandbox.level()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < restrict.MAX_FILE_BYTES:
        raise SetupError(f"no file may be larger than {limit / 1e9:g} GB here, and a trial's memory is a file: run "
                         "`ulimit -f unlimited`, or ask for a higher limit")


def check_baseline(word: str, rows: Sequence[Row], tag: str) -> None:
    """Raise SetupError where there is nothing to confirm, or nothing to compare with."""
    history = ledger.experiments(rows)
    if history and history[0].status is Status.CRASH:
        raise SetupError(f"the baseline of session {tag} crashed: mend train.py, commit it and start again with "
                         f"--tag {tag}-2")
    if word == "confirm" and not ledger.incumbent(history):
        raise SetupError("nothing to confirm yet: run python agent.py first")


def check_train(code: str) -> None:
    try:
        edits.check(code, ())
    except edits.ProposalError as error:
        raise SetupError(f"train.py cannot be the baseline: it {error.reason}; mend it and commit") from None


def settle_budget(options: argparse.Namespace, rows: Sequence[Row], tag: str) -> None:
    """Take the budget from the session's rows where none was given. Raises SetupError where they have another."""
    asked_s = float(f"{options.budget or DEFAULT_BUDGET_S:g}")  # as a row will say it
    budget_s = rows[0].budget if rows else asked_s
    if options.budget and asked_s != budget_s:
        raise SetupError(f"session {tag} has a budget of {budget_s:g} s, not {options.budget:g}; numbers would not "
                         f"compare: start another with --tag {tag}-{options.budget:g}s")
    options.budget = float(f"{budget_s * (options.longer or 1):g}")


def check_longer(times: float, rows: Sequence[Row], data: Data) -> None:
    """Raise SetupError where there is no gain to train longer, or such a trial would learn its data by heart."""
    history = ledger.experiments(rows)
    ends = history[0], ledger.incumbent(history)
    if ends[0] is ends[1]:
        raise SetupError("the baseline stands, so there is no gain that --longer could measure")
    n_passes = 1e6 * max(e.own.tokens_m for e in ends) / data.train_tokens  # of one budget
    if times * n_passes > 2:
        most = 1.9 / n_passes
        mend = f"at most --longer {most:.1f}" if most > 1.1 else "start a session with more text"
        raise SetupError(f"--longer {times:g} would train {times * n_passes:.1f} times over the same data; past 2, "
                         f"models of this kind learn it by heart: {mend}")


def settle_places(options: argparse.Namespace, rows: Sequence[Row], tag: str, report: Report) -> None:
    """Where trials run on this machine. Raises SetupError where it has no such place, or is not the session's."""
    device = default_device()
    if device == "cuda":
        report("checking the GPU", 0, 0)
    name = card.check(device)
    if options.ray and not find_spec("ray"):
        raise SetupError("--ray needs Ray, which is an extra: run `uv sync --extra ray`, or `pip install ray`")
    options.places = [] if options.ray else slots_here(options.slots, options.gpus, device)
    places = options.places
    if rows and places and (len(places) == 1 or not places[0].card):  # one of several cards is seen by its trials
        here = name or f"{device} x{len(places[0].cores) or os.cpu_count()}"  # as a referee names it
        shares = {f"{device} x{os.cpu_count() // n}": n for n in range(1, os.cpu_count() + 1)}
        if here != rows[0].device and rows[0].device in shares:
            raise SetupError(f"this session was measured on {rows[0].device}, trials here would have {here}: say "
                             f"--slots {shares[rows[0].device]}")
        if here != rows[0].device:
            raise other_machine(rows[0].device, here, tag)


def pick_researcher(options: argparse.Namespace, rows: Sequence[Row], runs: Path, say: Say,
                    report: Report) -> Researcher | None:
    """The model, or None for the tuner alone. Raises SetupError when a model was demanded and cannot be had."""
    if options.researcher == "tuner":
        return None
    if not (options.researcher_command or has_key()):
        if options.researcher == "llm":
            raise SetupError("--researcher llm needs ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL or --researcher-command")
        say("no ANTHROPIC_API_KEY: the built-in tuner proposes instead of a model")
        return None
    researcher = Researcher(options.model, options.effort, options.researcher_command, options.prices,
                            options.fallback, runs / "calls.jsonl")
    if options.max_usd and researcher.price is None:
        raise SetupError(f"no price of {researcher.name} is known: add --prices IN,OUT, or leave --max-usd out")
    report(f"asking {researcher.name} for a word", 0, 0)
    try:
        left_usd = options.max_usd - billed_usd(runs, rows) if options.max_usd else math.inf
        researcher.check(Purse(left_usd))
    except Unavailable as error:
        waits = "it is waited for" if options.researcher == "llm" else "the tuner works until it answers"
        say(f"{error}; {waits}")
    price = researcher.price
    cost = f"${price[0]:g} in, ${price[1]:g} out a million tokens" if price else "price unknown, counted as $0"
    share = f"; the tuner takes {options.tuner_share:.0%} of the turns, more while the model is out or late"
    say(f"{researcher.name} proposes ({cost})" + share * (options.researcher == "auto" and options.tuner_share > 0))
    return researcher


def settle_data(root: Path, options: argparse.Namespace, rows: Sequence[Row], tag: str) -> tuple[str, int]:
    """(name, shards) of the corpus: as it was named, else the session's own, else the default here. Raises SetupError.

    Nothing is prepared and nothing downloaded yet.
    """
    known = corpus.remembered(rows[0].data) if rows else None
    if rows and not known and options.data is None:
        raise SetupError(f"the corpus of session {tag} (data {rows[0].data}) is not in {cache_folder()}: name it with "
                         "--data, and --shards if it had some")
    if known and options.data in (None, known[0]):
        source, shards = known
    else:
        source, shards = options.data or default_data(), 0
    if known and source != known[0] and SIZES.keys() & {source, known[0]}:  # two paths may hold the same
        raise SetupError(f"this session was measured on {known[0]}, not {source}: leave --data out, or start another "
                         "session with --tag NAME")
    if options.shards and shards not in (0, options.shards):
        raise SetupError(f"this session was measured on {shards} shards, not {options.shards}: leave --shards out, or "
                         "start another session with --tag NAME")
    own = [] if source in SIZES else [Path(source)]
    if path := sandbox.exposed([root, cache_folder(), *own]):
        way_out = " with AUTORESEARCH_CACHE" if path == cache_folder() else ""
        raise SetupError(f"every trial could read {path}, which lies below what Python needs: move it elsewhere"
                         + way_out)
    if own:
        find_files(source)  # refuses a path without text
    return source, options.shards or shards or SHARDS


def check_data(data: Data, rows: Sequence[Row], tag: str) -> None:
    """Raise SetupError where the session was measured on other data."""
    if not rows or rows[0].data == data.hash[:8]:
        return
    other = f"start another session with --tag {tag}-2"
    known = corpus.remembered(rows[0].data)
    if known and known[0] == data.source:
        raise SetupError(f"{data.source} has changed since session {tag} was measured on it: put its text back, or "
                         + other)
    raise SetupError(f"session {tag} was measured on data {rows[0].data}, not {data.hash[:8]} ({data.name}): name the "
                     f"same --data, or {other}")


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
    """A line where the baseline sees the training data more than twice in one budget."""
    n_passes = row.tokens_m * 1e6 / data.train_tokens
    if row.experiment or row.status is not Status.KEEP or n_passes <= 2:
        return []
    mend = "more --shards" if data.source == "climbmix" else "more text"
    return [f"WARNING: the baseline sees the training data {n_passes:.1f} times in one budget; past 2, models of this "
            f"kind learn it by heart: start a session with {mend}"]


def fixed_files(root: Path, data: Data) -> dict[str, str]:
    """Name and content hash of everything that no experiment may change."""
    code = [root / "prepare.py", root / "agent.py", *sorted((root / "lab").glob("*.py"))]
    paths = [*code, data.folder / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_fixed(before: dict[str, str], now: dict[str, str], tag: str) -> None:
    """Raise SetupError when a fixed file has changed since the start."""
    if changed := [name for name, digest in now.items() if before.get(name) != digest]:
        raise SetupError(f"{', '.join(changed)} changed while the session ran, so numbers before and after do not "
                         f"compare; restore it, or start again with --tag {tag}-2")


def lacks_baseline(session: Session) -> bool:
    """Whether the baseline's measurements are gone, so that it runs again; false if its last repeat crashed."""
    rows = [row for row in session.history[0].rows if row.split == "val"] if session.history else []
    is_comparable = bool(rows) and rows[0].budget == session.budget_s  # not where --longer trains
    is_crash = bool(rows) and rows[-1].status is Status.REPEAT and rows[-1].val_bpb is None
    return is_comparable and not is_crash and not (session.runs / baseline.NAME).exists()


def suspects_machine(session: Session, trial: Trial) -> bool:
    """Whether to ask if the incumbent still starts: a failed machine, or two trials in a row that never trained.

    Raises SetupError for a machine that is not the session's.
    """
    if session.device not in ("", trial.device):
        raise other_machine(session.device, trial.device, session.tag)
    last = session.rows[-1] if session.rows else None
    before = last is not None and last.status is Status.CRASH and last.train_seconds == 0
    return trial.ending is Ending.MACHINE or (before and trial.crashed and trial.train_seconds == 0)


def other_machine(before: str, now: str, tag: str) -> SetupError:
    return SetupError(f"this session was measured on {before}, trials here have {now}; start another with "
                      f"--tag {tag}-2")


def machine_fault(root: Path, trial: Trial) -> Exception:
    if shutil.disk_usage(root).free < FULL_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return SetupError(f"the machine is at fault ({one_line(trial.reason, 200)}): look after GPU and disk (nvidia-smi, "
                      "df), then run the same command again; the experiment does not count")
