"""The research loop: propose a train.py, try it for the budget, keep what lowers val_bpb, write everything down.

    python agent.py            research until stopped
    python agent.py report     what the rows say, as text, progress.png and report.html
    python agent.py confirm    baseline against incumbent, fresh seeds, on a split that no other trial sees
                               (--each: also what every kept change is worth in the final train.py)

It never asks a question. Kill it at any moment: the same command continues, and at most one experiment is lost.
"""

import argparse
import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from lab import confirm as confirmation
from lab import edits, ledger, runner, sandbox
from lab.corpus import Data, default_data, open_data, progress_bar
from lab.display import Display
from lab.ledger import Experiment, Proposal, Row, SetupError, Trial, one_line
from lab.proposer import Proposer, read_program, tuner_credit
from lab.researcher import DEFAULT_MODEL, Researcher, Unavailable, has_key
from lab.store import Store
from prepare import DEFAULT_BUDGET_S

ROOT = Path(__file__).resolve().parent
FAULTS = (SetupError, OSError, subprocess.CalledProcessError)  # what the user or the machine must mend
REPEAT_AFTER = 8        # experiments without a keep until the incumbent is measured once more: luck does not last
CONFIRM_SEEDS = 3       # fresh seeds of baseline and of incumbent
CONFIRM_SHARE = 0.4     # of --hours, at most
TUNER_SHARE = 0.3       # of the turns, beside an LLM; tests/bench/bench_tuner.py
START_S = 1.0           # of training, to see whether the incumbent still starts
MACHINE_FAULT = re.compile(r"CUDA error|CUDA driver|no CUDA|NVML|CUDNN|CUBLAS|NCCL|HIP error|the referee|No space left|"
                           r"Input/output error|device.{0,20}(lost|unavailable|not available)", re.I)


# What to do next ------------------------------------------------------------------------------------------------------


def next_step(history: Sequence[Experiment], tuner_share: float) -> str:
    """"baseline", "repeat", "tuner" or "llm": a function of the rows alone, so that a restart changes nothing."""
    history = confirmation.ideas(history)
    best = ledger.incumbent(history)
    if best is None:
        return "baseline"
    if ledger.misses(history) >= REPEAT_AFTER * len([row for row in best.rows if row.split == "val"]):
        return "repeat"
    return "tuner" if tuner_credit(history, tuner_share) >= 1 else "llm"


def judge(trial: Trial, history: Sequence[Experiment], lines_saved: int) -> tuple[str, str]:
    """(verdict, note). Lower than the incumbent's estimate is kept, without a gate: repeats keep that honest.

    Fewer code lines are kept too when the loss is within one measured sigma of the session's lowest estimate; the bound
    against the lowest, not the last, stops any creep.
    """
    best = ledger.incumbent(history)
    if trial.crashed:
        return "crash", ""
    if best is None or trial.val_bpb < best.val_bpb:
        return "keep", ""
    if lines_saved > 0 and (noise := ledger.sigma(history)) is not None:
        lowest = min(e.val_bpb for e in history if e.status == "keep" and e.val_bpb is not None)
        if trial.val_bpb <= lowest + noise:
            return "keep", f"simpler: {lines_saved} lines fewer, within one sigma ({noise:.6f}) of the lowest"
    return "discard", ""


def code_lines(code: str) -> int:
    """Lines that hold code: no blanks, no comments."""
    return sum(1 for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def next_seed(experiment: Experiment | None, number: int) -> int:
    """Every trial has a seed of its own, and the same rows give the same seed."""
    return 100 * number + (len(experiment.rows) if experiment else 0)


def row_of(trial: Trial, *, commit: str, status: str, number: int, parent: str, description: str, source: str,
           usd: float = 0.0, note: str = "") -> Row:
    notes = "; ".join(filter(None, (trial.reason, trial.note, note)))
    return Row(commit=commit[:7], val_bpb=trial.val_bpb, memory_gb=trial.memory_gb, status=status,
               description=one_line(description), experiment=number, parent=parent[:7], seed=trial.seed,
               split=trial.split, budget=trial.budget, train_seconds=trial.train_seconds,
               total_seconds=trial.total_seconds, tokens_m=trial.tokens_m, params_m=trial.params_m, source=source,
               usd=usd, device=trial.device, data=trial.data, sandbox=trial.sandbox, note=notes,
               when=ledger.utc_now())


# Stopping -------------------------------------------------------------------------------------------------------------


class Stop:
    """Ctrl-C and SIGTERM: the first lets the trial finish, the second ends it. A closed terminal changes nothing."""

    def __init__(self):
        self.asked = threading.Event()  # stop after this trial
        self.now = threading.Event()    # stop the trial too
        self.terminals: list[int] = []

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, lambda *_: self._mute())
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def _mute(self) -> None:
        """The terminal is gone: every further word to it would be an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in self.terminals:
            os.dup2(nowhere, fd)

    def _on_signal(self, *_) -> None:
        (self.now if self.asked.is_set() else self.asked).set()


# The loop -------------------------------------------------------------------------------------------------------------


class Loop:
    """One session, worked on by this process."""

    def __init__(self, options: argparse.Namespace, store: Store, data: Data, display: Display,
                 researcher: Researcher | None, stop: Stop):
        self.options, self.store, self.data, self.display, self.stop = options, store, data, display, stop
        self.runs = ROOT / "runs" / store.tag
        self.runs.mkdir(parents=True, exist_ok=True)
        self.history = ledger.experiments(ledger.read(ROOT / "results.tsv"))
        self.fixed = fixed_files(data)
        self.started_at = time.monotonic()
        self.new = 0                                # experiments of this process, the baseline aside
        self.proposer = Proposer(options, store, data, display, researcher, self.history, self.runs, stop.asked,
                                 self.more)
        self.program = ""                           # program.md as it stood at the last row
        self.reporting: subprocess.Popen | None = None

    @property
    def best(self) -> Experiment | None:
        return ledger.incumbent(self.history)

    def run(self) -> str:
        """Research until a limit is reached; say which."""
        while not (limit := self.limit()):
            step = next_step(self.history, self.proposer.share)
            if step == "repeat":
                self.repeat(self.best, "val")
            else:
                self.experiment(self.baseline() if step == "baseline" else self.proposer.propose(step))
        if self.confirm_s() and not self.stop.asked.is_set():
            confirm(self)
        return limit

    def limit(self) -> str:
        """Which of the user's limits is reached, "" while none is."""
        options = self.options
        if self.stop.asked.is_set():
            return "stopped by you"
        if options.experiments is not None and self.new >= options.experiments and self.best:
            return f"--experiments {options.experiments}"
        ideas = self.proposer
        if ideas.spent_out or ideas.researcher and ideas.left_usd() <= 0:
            return f"--max-usd {options.max_usd:g} (${ideas.spent_usd:.2f} spent)"
        if options.hours is not None and time.monotonic() + self.trial_s() > self.ends_at() - self.confirm_s():
            return f"--hours {options.hours:g}"
        return ""

    def more(self) -> bool:
        """Whether another idea will be wanted, after the experiment that may be under way."""
        n, limit = self.new + (self.proposer.running != ""), self.options.experiments
        return not self.stop.asked.is_set() and (limit is None or n < limit)

    def ends_at(self) -> float:
        return self.started_at + 3600 * self.options.hours

    def trial_s(self) -> float:
        """What a trial takes, start to end, by the last few."""
        last = [row.total_seconds for experiment in self.history[-5:] for row in experiment.rows if row.val_bpb]
        return sum(last) / len(last) if last else 1.1 * self.options.budget

    def confirm_s(self) -> float:
        """The part of --hours kept free for confirm; 0 where that would be most of the night."""
        if self.options.hours is None or len(self.history) < 2:
            return 0.0
        needed = 2 * CONFIRM_SEEDS * self.trial_s()
        return needed if needed < CONFIRM_SHARE * 3600 * self.options.hours else 0.0

    # -- one experiment, one trial

    def experiment(self, proposal: Proposal | None) -> None:
        """Save, try, judge, write down, keep: in this order, so that a kill at any point loses no row."""
        if proposal is None:
            return
        number = self.history[-1].number + 1 if self.history else 0
        best = self.best
        commit = self.save(number, proposal)
        self.display.experiment_started(number, proposal.description, proposal.source, self.options.budget)
        self.proposer.running = proposal.description
        self.proposer.draft_ahead()
        trial = self.trial(proposal.code, next_seed(None, number), number, "val")
        if trial is None:
            return
        saved = code_lines(self.store.code(best.number)) - code_lines(proposal.code) if best else 0
        verdict, why = judge(trial, self.history, saved)
        note = "; ".join(filter(None, (why, proposal.note, self.steering())))
        self.record(row_of(trial, commit=commit, status=verdict, number=number, parent=best.commit if best else "",
                           description=proposal.description, source=proposal.source, usd=self.proposer.bill(proposal),
                           note=note))
        self.proposer.learn(proposal, trial)
        self.new += number > 0
        if verdict == "keep":
            if note := self.store.advance(commit):
                self.display.say(note)
            if (self.runs / "trial" / "cache").is_dir():
                runner.keep_cache(self.runs)
        elif number == 0:
            raise SetupError(f"the baseline crashed: {trial.reason} (see runs/{self.store.tag}/); mend train.py, "
                             f"commit it and start again with --tag {self.store.tag}-2")
        elif verdict == "crash":
            self.proposer.mend_ahead(proposal, trial)
        self.show()

    def save(self, number: int, proposal: Proposal) -> str:
        fingerprint = edits.fingerprint(proposal.code)
        self.proposer.tried.add(fingerprint)
        body = f"{proposal.reasoning}\n\nsource: {proposal.source}\nfingerprint: {fingerprint}"
        return self.store.save(number, proposal.code, f"experiment {number}: {proposal.description}", body)

    def repeat(self, experiment: Experiment, split: str) -> Trial | None:
        """Another trial of a commit already tried, with a seed of its own."""
        seed = next_seed(experiment, experiment.number)
        self.display.experiment_started(experiment.number, f"again: {experiment.own.description}", "repeat",
                                        self.options.budget)
        self.proposer.draft_ahead()
        trial = self.trial(self.store.code(experiment.number), seed, experiment.number, split)
        if trial:
            self.record(row_of(trial, commit=experiment.commit, status="repeat", number=experiment.number,
                               parent=experiment.own.parent, description=experiment.own.description,
                               source=experiment.own.source, note=ledger.pinned(experiment, trial)))
            self.show()
        return trial

    def trial(self, code: str, seed: int, number: int, split: str) -> Trial | None:
        """Run one trial; None when the user's second Ctrl-C ended it. Stops when something fixed has changed."""
        self.check_fixed()
        trial = self.attempt(code, seed, split, self.options.budget)
        if trial:
            self.runs.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned up
            runner.save_log(trial, self.runs, number)
            if self.history and trial.device != self.history[0].own.device:
                raise SetupError(f"this session was measured on {self.history[0].own.device}, this machine has "
                                 f"{trial.device}; start another with --tag {self.store.tag}-2")
            self.blame(trial)
        return trial

    def attempt(self, code: str, seed: int, split: str, budget_s: float) -> Trial | None:
        """One run of one train.py; that the referee itself fell over is a crash as well."""
        try:
            return runner.run(code, data=self.data, seed=seed, budget_s=budget_s, folder=self.runs, split=split,
                              on_event=self.display.event, interrupted=self.stop.now.is_set)
        except (runner.RefereeFailed, BrokenPipeError, FileNotFoundError) as error:  # the last: runs/ was deleted
            reason, device = f"the referee failed: {error}", self.history[0].own.device if self.history else ""
            return Trial(None, reason, seed, split, budget_s, device, self.data.hash[:8], sandbox.level())

    def blame(self, trial: Trial) -> None:
        """Raise SetupError when it was the machine that crashed: a lost GPU ends the incumbent's start as well."""
        before = self.history[-1].own if self.history else None
        twice = before and before.status == "crash" and before.train_seconds == trial.train_seconds == 0
        if not (trial.crashed and self.best and (twice or MACHINE_FAULT.search(trial.reason))):
            return
        self.display.say(f"{one_line(trial.reason, 200)}: does the incumbent still start?")
        again = self.attempt(self.store.code(self.best.number), trial.seed, "val", min(START_S, self.options.budget))
        if again and again.crashed:
            raise SetupError(f"the incumbent crashes here too ({again.reason}): look after GPU and disk (nvidia-smi, "
                             "df), then run the same command again; the experiment does not count")

    def check_fixed(self) -> None:
        changed = [name for name, digest in fixed_files(self.data).items() if self.fixed.get(name) != digest]
        if changed:
            raise SetupError(f"{', '.join(changed)} changed while the session ran, so numbers before and after do not "
                             f"compare; restore it, or start again with --tag {self.store.tag}-2")

    def record(self, row: Row) -> None:
        """The commit point."""
        for line in self.store.append(row):
            self.display.say(line)
        row = ledger.parse_row(ledger.format_row(row))  # rounded, as a restart reads it
        if row.status == "repeat":
            at = next(i for i, experiment in enumerate(self.history) if experiment.number == row.experiment)
            self.history[at] = Experiment(row.experiment, (*self.history[at].rows, row))
        else:
            self.history.append(Experiment(row.experiment, (row,)))
        self.display.experiment_ended(row, self.history)

    def show(self) -> None:
        """Redraw progress.png and report.html in a process of its own: it slows nothing and leaves no memory behind."""
        command = [sys.executable, str(ROOT / "agent.py"), "report", "--quiet"]
        if self.reporting is None or self.reporting.poll() is not None:
            self.reporting = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                              stderr=subprocess.DEVNULL, start_new_session=True)

    def close(self) -> None:
        """Leave the branch with its last rows committed and nothing running."""
        self.stop.asked.set()
        self.proposer.close()
        if self.reporting:
            self.reporting.wait()
        try:
            self.store.close()
        finally:
            self.store.release()

    def steering(self) -> str:
        """A note for the row when program.md has changed since the last one."""
        before, self.program = self.program, read_program(ROOT)
        return "program.md changed" if before not in ("", self.program) else ""

    def baseline(self) -> Proposal:
        return Proposal("baseline", self.store.train_code(), "baseline")

    def log_of_best(self) -> str:
        return runner.read_log(self.runs, self.best.number, self.best.own.seed) if self.best else ""


def confirm(loop: Loop) -> None:
    """Say what fresh seeds on the test split say; with --each also of every kept change, taken out alone."""
    from lab import report

    loop.proposer.researcher = None  # a proposal that is drafted now would never run
    each = loop.options.each and loop.options.word == "confirm"
    if not each or len(confirmation.test_values(loop.best)) < CONFIRM_SEEDS:
        measure_again(loop)
    loop.display.say(report.headline(loop.history))
    for line in report.left_out(loop.history) if each and leave_one_out(loop) else ():
        loop.display.say(line)


def measure_again(loop: Loop) -> None:
    """Baseline and incumbent, fresh seeds, interleaved, on the test split that nothing else ever sees."""
    first, best = loop.history[0], loop.best
    for _ in range(CONFIRM_SEEDS):
        for experiment in (first, best) if best.number else (first,):
            current = next(e for e in loop.history if e.number == experiment.number)
            if loop.stop.asked.is_set() or loop.repeat(current, "test") is None:
                return


def leave_one_out(loop: Loop) -> bool:
    """Take every kept change out of the final train.py alone, and measure it; False when it was stopped.

    A seed of each in turn: whenever it is stopped, the ranking is whole. A second call goes on where the first stopped.
    """
    final, left = loop.store.code(loop.best.number), {}
    for before, kept in pairwise(e for e in loop.history if e.status == "keep"):
        code = confirmation.without(loop.store.code(before.number), loop.store.code(kept.number), final)
        try:
            edits.check(code or "", ())
            left[kept] = code
        except edits.ProposalError:
            loop.display.say(f"#{kept.number} cannot be taken out alone, later changes build on it: "
                             + one_line(kept.own.description, 100))
    seeds = range(1, CONFIRM_SEEDS + 1)
    return all(not loop.stop.asked.is_set() and measure_without(loop, kept, code, n_seeds)
               for n_seeds in seeds for kept, code in left.items())


def measure_without(loop: Loop, kept: Experiment, code: str, n_seeds: int) -> bool:
    """See that a removal has `n_seeds` test values, or has crashed; False when the user ended the trial."""
    measured = confirmation.removals(loop.history).get(kept.number)
    if measured:
        enough = measured.status == "crash" or len(measured.rows) >= n_seeds
        return enough or loop.repeat(measured, "test") is not None
    number, proposal = loop.history[-1].number + 1, Proposal(confirmation.name(kept), code, confirmation.LEFT_OUT)
    commit = loop.save(number, proposal)
    loop.display.experiment_started(number, proposal.description, proposal.source, loop.options.budget)
    trial = loop.trial(code, next_seed(None, number), number, "test")
    if trial:
        loop.record(row_of(trial, commit=commit, status="crash" if trial.crashed else "discard", number=number,
                           parent=loop.best.commit, description=proposal.description, source=proposal.source))
        loop.show()
    return trial is not None


def fixed_files(data: Data) -> dict[str, str]:
    """Name and content hash of everything that no experiment may change."""
    code = [ROOT / "prepare.py", ROOT / "agent.py", *sorted((ROOT / "lab").glob("*.py"))]
    paths = [*code, data.folder / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# The command line -----------------------------------------------------------------------------------------------------


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


def prices(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) not in (2, 4) or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not IN,OUT or IN,OUT,CACHE_WRITE,CACHE_READ")
    return values


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
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
    return parser.parse_args(arguments)


def settle(options: argparse.Namespace, rows: Sequence[Row], data: Data, tag: str) -> None:
    """Take budget from the session's rows where none was given. Raises SetupError where the session is another's."""
    first = rows[0] if rows else None
    if options.budget is None:
        options.budget = first.budget if first else DEFAULT_BUDGET_S
    if first and first.budget != options.budget:
        raise SetupError(f"session {tag} has a budget of {first.budget:g} s, not {options.budget:g}; numbers would not "
                         f"compare: start another with --tag {tag}-{options.budget:g}s")
    if first and first.data != data.hash[:8]:
        raise SetupError(f"session {tag} was measured on data {first.data}, not {data.hash[:8]} ({data.name}): name "
                         f"the same --data, or start another session with --tag {tag}-2")


def pick_researcher(options: argparse.Namespace, say: Callable[[str], None]) -> Researcher | None:
    """The model, or None for the tuner alone. Raises SetupError when a model was demanded and cannot be had."""
    if options.researcher == "tuner":
        return None
    if not (options.researcher_command or has_key()):
        if options.researcher == "llm":
            raise SetupError("--researcher llm needs ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL or --researcher-command")
        say("no ANTHROPIC_API_KEY: the built-in tuner proposes instead of a model")
        return None
    researcher = Researcher(options.model, options.effort, options.researcher_command, options.prices, options.fallback)
    try:
        researcher.check()
    except Unavailable as error:
        if error.fatal:
            raise SetupError(str(error)) from None
        say(f"{error}; the tuner works until the model answers")
    return researcher


def open_session(options: argparse.Namespace, display: Display, stop: Stop) -> Loop:
    """Everything that is checked before the first write. Raises SetupError with nothing changed."""
    read_program(ROOT)
    compile_train()
    store = Store.open(ROOT, options.tag, datetime.now().strftime("%b%d").lower())
    with progress_bar() as report:
        data = open_data(options.data or default_data(), report)
    settle(options, store.rows(), data, store.tag)
    if options.data is None and data.name == "builtin":
        display.say("no CUDA GPU: the small CPU profile, whose numbers compare only with themselves")
    if sandbox.level() == "none":
        display.say("sandbox: none. This kernel has no Landlock: a trial can read and write what you can")
    researcher = pick_researcher(options, display.say)
    for line in [*store.begin(), *store.recover()]:
        display.say(line)
    return Loop(options, store, data, display, researcher, stop)


def compile_train() -> None:
    try:
        edits.check((ROOT / "train.py").read_text(encoding="utf-8"), ())
    except (OSError, UnicodeDecodeError, edits.ProposalError) as error:
        raise SetupError(f"train.py cannot be the baseline: {one_line(str(error))} Mend it and commit.") from None


def limits_text(options: argparse.Namespace) -> str:
    """When it will stop by itself."""
    end = f"{datetime.now() + timedelta(hours=options.hours or 0):%H:%M}"
    words = {"experiments": "after {:g} experiments", "hours": f"after {{:g}} hours, at {end}", "max_usd": "at ${:g}"}
    given = [text.format(getattr(options, name)) for name, text in words.items() if getattr(options, name) is not None]
    hurried = options.hours and 2 * CONFIRM_SEEDS * 1.1 * options.budget > CONFIRM_SHARE * 3600 * options.hours
    return ("stops " + (" or ".join(given) if given else "when you press Ctrl-C")
            + (": too soon to confirm, run python agent.py confirm afterwards" if hurried else ""))


def work(options: argparse.Namespace) -> int:
    """`research` and `confirm`: open the session, do it, leave the branch closed."""
    stop = Stop()
    with Display("autoresearch") as display:
        loop = open_session(options, display, stop)
        display.title = f"autoresearch/{loop.store.tag}"
        display.start(loop.history, loop.log_of_best())
        display.limits(limits_text(options))
        stop.listen()
        faults = []  # not refused starts: the loop had begun
        try:
            do(options, loop, display)
        except FAULTS as error:
            faults.append(fault_line(error))
        finally:
            try:
                loop.close()
            except FAULTS as error:
                faults.append(fault_line(error))
        if faults:
            display.say(f"agent.py: {faults[0]}")
    return 1 if faults else 0


def do(options: argparse.Namespace, loop: Loop, display: Display) -> None:
    if options.word == "research":
        display.say(f"stopped: {loop.run()}")
    elif loop.best is None:
        raise SetupError("nothing to confirm yet: run python agent.py first")
    else:
        confirm(loop)


def fault_line(error: Exception) -> str:
    """What the user reads of a fault that no retry mends."""
    if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        return "the disk is full; make room and run the same command again: it continues"
    if isinstance(error, SetupError):
        return str(error)
    return f"{one_line(str(error))}; put that right and run the same command again: it continues"


def report_session(options: argparse.Namespace) -> int:
    """`report`: the morning's text, progress.png and report.html, from the rows alone, also while the loop runs."""
    from lab import report

    try:
        history = ledger.experiments(ledger.read(ROOT / "results.tsv"))
    except ValueError as error:
        raise SetupError(f"{error}: restore the line with git, or remove it") from None
    tag = current_tag()
    runs = ROOT / "runs" / tag if tag else None
    program = ROOT / "program.md"
    text = program.read_text(encoding="utf-8", errors="replace") if program.is_file() else ""
    report.write(ROOT, history, text, report.diffs_of(ROOT, tag), runs)
    if not options.quiet:
        print(report.summary(history, runs))
    return 0


def current_tag() -> str:
    """The session that is checked out, "" for none."""
    head = subprocess.run(["git", "symbolic-ref", "-q", "HEAD"], capture_output=True, text=True).stdout.strip()
    prefix = "refs/heads/autoresearch/"
    return head.removeprefix(prefix) if head.startswith(prefix) else ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    os.chdir(ROOT)
    sandbox.hide()
    try:
        return report_session(options) if options.word == "report" else work(options)
    except FAULTS as error:
        print(f"agent.py: {fault_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, SetupError) else 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
