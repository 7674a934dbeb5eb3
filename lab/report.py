"""The morning: reads the rows, writes report.html and progress.png and says the same as text or as one object.

Promises: what a model or a trial wrote is shown as text, never as markup. Both files appear whole or not at all. The
headline is what fresh seeds measured on the test split, or says that nobody measured it yet. The order is the file's.
A damaged file in the run folder stops nothing. lab/page.html is the page's template, lab/picture.py draws. It runs no
trial, and `diffs_of` is all that it asks of git.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from textwrap import indent

from lab import confirm, ledger, picture, terminal
from lab.ledger import COLUMNS, Experiment, Row, SetupError, Status, one_line
from lab.timeline import Moment, timeline

MAX_CAUSES = 5               # of crashes, the most frequent first
MAX_DIFF_CHARS = 20_000      # of one experiment in report.html
MAX_DIFFS_CHARS = 5_000_000  # of all, the newest first: the page stays under 20 MB
WHOLE = -1                   # key of the diff from the baseline to the incumbent; no experiment has this number


@dataclass(frozen=True)
class Night:
    """A session's rows, and what everything below asks of them."""

    rows: Sequence[Row]
    history: Sequence[Experiment]   # without busy rows, which count nowhere
    moments: Sequence[Moment]
    incumbent: Experiment | None
    sigma: float | None             # noise of one trial


def night(rows: Sequence[Row]) -> Night:
    history = ledger.experiments(row for row in rows if row.status is not Status.BUSY)
    return Night(rows, history, timeline(rows), ledger.incumbent(history), ledger.sigma(history))


# The word `report`


def morning(root: Path, options: argparse.Namespace) -> int:
    """Write progress.png and report.html from the rows alone, also while the loop runs, and print the text."""
    tag = options.tag or terminal.current_tag()
    rows, runs, program = rows_of(root, tag), root / "runs" / tag, root / "program.md"
    text = program.read_text(encoding="utf-8", errors="replace") if program.is_file() else ""
    write(root, rows, text, diffs_of(root, tag), runs)
    if options.json:
        print(json.dumps(as_json(rows, runs)))
    elif not options.quiet:
        print(summary(rows, runs))
    return 0


def rows_of(root: Path, tag: str) -> list[Row]:
    """A session's rows: of the one that is checked out as they are now, of another as its branch holds them."""
    heads = _git(root, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/heads/autoresearch").split()
    if tag not in heads:
        known = f"--tag {' or '.join(heads[-5:])}" if heads else "none exists yet: run python agent.py first"
        raise SetupError(f"no session {tag} here: {known}" if tag else f"no session is checked out: {known}")
    try:
        if tag == terminal.current_tag():
            return ledger.read(root / "results.tsv")
        return ledger.parse(_git(root, "show", f"refs/heads/autoresearch/{tag}:results.tsv").encode())
    except ValueError as error:
        raise SetupError(f"{error}: restore the line with git, or remove it") from None


def who_proposed(rows: Sequence[Row], n_unusable: int, usd: float) -> str:
    """The last line of a run: "12 experiments: model 9 (2 repaired), tuner 3; 1 answer not usable; $0.41"."""
    own = [row for row in rows if row.status in (Status.KEEP, Status.DISCARD, Status.CRASH)
           and row.split == "val" and row.source != "baseline"]
    models = [row for row in own if row.source != "tuner"]
    n_repaired = sum("repaired" in row.note or "mended" in row.note for row in models)
    names = sorted({row.source for row in models})
    parts = [f"{names[0] if len(names) == 1 else 'models'} {len(models)}"
             + (f" ({n_repaired} repaired)" if n_repaired else "")] if models else []
    parts += [f"tuner {len(own) - len(models)}"] if len(own) > len(models) else []
    answers = f"{n_unusable} answer{'s' * (n_unusable != 1)} not usable" if n_unusable else ""
    count = f"{len(own)} experiment{'s' * (len(own) != 1)}"
    return "; ".join(filter(None, (": ".join(filter(None, (count, ", ".join(parts)))), answers, f"${usd:.2f}")))


# Figures and text


def confirmed(rows: Sequence[Row]) -> tuple[float, float, int] | None:
    """(gain, its standard error, seeds a side) of the incumbent on the test split; None where it is not measured."""
    now = night(rows)
    if now.incumbent is None or now.incumbent is now.history[0]:
        return None
    sides = [experiment.values("test") for experiment in (now.history[0], now.incumbent)]
    n = min(map(len, sides))
    if n < 2:
        return None
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in sides))
    return statistics.fmean(sides[0]) - statistics.fmean(sides[1]), error, n


def headline(rows: Sequence[Row]) -> str:
    """The figure of the night in one sentence, or why there is none."""
    now = night(rows)
    if now.incumbent is None:
        return "Nothing is measured yet."
    if now.incumbent is now.history[0]:
        return "No experiment was kept: the baseline stands."
    if result := confirmed(rows):
        gain, error, n = result
        figure = f"{gain:.6f} ± {error:.6f} bits per byte ({n} fresh seeds each, test split)"
        if gain > 2 * error:
            return f"Confirmed gain {figure}."
        worse = gain < -2 * error
        end = "the incumbent is worse than the baseline." if worse else "within the noise."
        return f"No gain confirmed: {figure}, {end}"
    gain = (now.history[0].val_bpb or math.nan) - (now.incumbent.val_bpb or math.nan)
    return (f"Not confirmed yet: {gain:.6f} below the baseline on the validation split, which flatters, "
            "for the lowest was picked. python agent.py confirm measures it.")


def summary(rows: Sequence[Row], runs: Path | None = None) -> str:
    """The morning's text."""
    now = night(rows)
    if not now.history:
        return headline(rows)
    facts = [f"{name + ':':12} {value}" for name, value in _facts(now, runs)]
    kept = [f"  {number:>5} {gain:>+10.6f}  {mark:15}  {text}" for number, gain, mark, text in _keeps(now)]
    if kept:
        kept.insert(0, "what each keep gave, against the incumbent at the time, on the validation split:")
    return "\n".join([headline(rows), "", *facts, "", *kept, "", *left_out(rows)]).rstrip()


def as_json(rows: Sequence[Row], runs: Path | None = None) -> dict[str, object]:
    """The morning as one object for other programs.

    headline   the sentence
    estimates  baseline and incumbent: {experiment, commit, val_bpb} or null; confirmed: [gain, its standard error,
               seeds a side] on the test split, or null
    noise      standard deviation of one trial in bits per byte; null before anything was measured twice
    rows       every row of results.tsv under the names of its columns, in the order of the file
    money      {source: {usd, experiments}}
    seconds    {part of a trial: seconds}, summed over the run folder
    """
    now = night(rows)
    ends = {"baseline": now.history[0] if now.history else None, "incumbent": now.incumbent}
    estimates = {name: e and {"experiment": e.number, "commit": e.commit, "val_bpb": e.val_bpb}
                 for name, e in ends.items()}
    return {"headline": headline(rows), "estimates": estimates | {"confirmed": confirmed(rows)}, "noise": now.sigma,
            "rows": [{name: getattr(row, name) for name in COLUMNS} for row in rows],
            "money": _money(rows), "seconds": _phases(runs)}


def left_out(rows: Sequence[Row]) -> list[str]:
    """What each kept change is worth in the final train.py: a heading, a line each, and what that suggests."""
    ranking = confirm.ranking(night(rows).history)
    if not ranking:
        return []
    lines = [f"  {w.number:>5} {_worth(w):26}  {one_line(w.description, 80)}" for w in ranking]
    return ["what each kept change is worth in the final train.py (taken out alone, test split):", *lines,
            removal_advice(ranking)]


def _worth(worth: confirm.Worth) -> str:
    if worth.gain is None:
        return "crashes without it"
    return f"{worth.gain:+.6f}" + ("" if worth.error is None else f" ± {worth.error:.6f}")


def removal_advice(ranking: Sequence[confirm.Worth]) -> str:
    """Which changes are candidates for removal, in a sentence."""
    if all(worth.error is None for worth in ranking):
        return "One seed each tells no noise: let confirm --each go on."
    names = ", ".join(f"#{worth.number}" for worth in ranking if worth.within_noise)
    return f"Within noise, candidates for removal: {names}." if names else "None of them is within noise."


def _keeps(now: Night) -> list[tuple[int, float, str, str]]:
    """(number, gain, above or within the noise, description) of every keep but the baseline."""
    kept = []
    for moment in now.moments:
        if moment.is_own and moment.row.status is Status.KEEP and moment.delta is not None:
            noise = math.sqrt(2) * (now.sigma or 0)  # of a difference of two trials
            mark = "above the noise" if -moment.delta >= 2 * noise else "within noise"
            kept.append((moment.row.experiment, -moment.delta, mark if noise else "",
                         one_line(moment.row.description, 80)))
    return kept


def _facts(now: Night, runs: Path | None) -> list[tuple[str, str]]:
    """(name, text) of everything that is one line, for the text and for the page."""
    facts = [("experiments", _counts(now)), ("crashes", _causes(now))]
    facts.append(("baseline", "" if (value := now.history[0].val_bpb) is None else f"{value:.6f}"))
    if (best := now.incumbent) and best.val_bpb is not None:
        n = sum(row.split == "val" and row.val_bpb is not None for row in best.rows)
        facts.append(("incumbent", f"{best.val_bpb:.6f} (mean of {n}), experiment {best.number}, {best.commit[:7]}: "
                                   f"{one_line(best.own.description, 80)}"))
    noise = f"sigma {now.sigma:.6f} between seeds" if now.sigma is not None else "not measured yet"
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in _phases(runs).items())
    money = ", ".join(f"{source} ${m['usd']:.2f} for {m['experiments']}" for source, m in _money(now.rows).items())
    facts += [("noise", noise), ("time", _time(now.rows)), ("by part", parts),
              ("money", money and f"${sum(row.usd for row in now.rows):.2f}: {money}")]
    for name, key in (("machine", "device"), ("data", "data"), ("sandbox", "sandbox"), ("budget", "budget")):
        values = sorted({str(getattr(row, key)) for row in now.rows} - {"", "0.0", "0"})
        facts.append((name, ", ".join(values) + (" s" if values and key == "budget" else "")))
    return [(name, text) for name, text in facts if text]


def _counts(now: Night) -> str:
    ideas = confirm.ideas(now.history)
    count = Counter(experiment.status for experiment in ideas)
    busy, removed = sum(row.status is Status.BUSY for row in now.rows), len(now.history) - len(ideas)
    return (f"{len(ideas)}: {count[Status.KEEP]} kept, {count[Status.DISCARD]} discarded, "
            f"{count[Status.CRASH]} crashed; {len(now.rows) - busy - len(now.history)} repeats"
            + (f"; {removed} changes left out again" if removed else "")
            + (f"; {busy} trials did not have their machine" if busy else ""))


def _causes(now: Night) -> str:
    """Crashes by their first words, numbers aside, so that the same cause is counted as one."""
    notes = [re.split("[;:(]", e.own.note)[0] for e in now.history if e.status == Status.CRASH]
    causes = Counter(one_line(re.sub(r"\d+", "N", note), 60) or "no reason" for note in notes)
    return ", ".join(f"{n} x {cause}" for cause, n in causes.most_common(MAX_CAUSES))


def _time(rows: Sequence[Row]) -> str:
    trained, total = sum(row.train_seconds for row in rows), sum(row.total_seconds for row in rows)
    text = f"{_hours(trained)} of training in {_hours(total)} of trials"
    try:
        first, last = (datetime.fromisoformat(row.when).replace(tzinfo=timezone.utc) for row in (rows[0], rows[-1]))
    except ValueError:
        return text if total else ""
    span = (last - first).total_seconds() + rows[0].total_seconds
    share = f"; {100 * trained / max(span, 1):.0f} % of the {_hours(span)} since the start went into training"
    return text + (share if span >= trained else "")  # a clock that was set back says nothing


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _money(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Dollars and experiments by source."""
    money: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.status not in (Status.REPEAT, Status.BUSY) and row.source not in ("", confirm.LEFT_OUT):
            mine = money.setdefault(one_line(row.source, 40), {"usd": 0.0, "experiments": 0})
            mine["usd"] += row.usd
            mine["experiments"] += 1
    return money


def _phases(runs: Path | None) -> dict[str, float]:
    """Seconds by part of a trial, summed over the run folder's JSON files; a damaged file counts for nothing."""
    parts: Counter[str] = Counter()
    for path in sorted(runs.glob("*.json")) if runs else []:
        try:
            told = json.loads(path.read_bytes(), parse_int=float)
        except (OSError, ValueError, RecursionError):
            continue
        phases = told.get("phases") if isinstance(told, dict) else None
        for name, seconds in phases.items() if isinstance(phases, dict) else ():
            parts[one_line(name, 20)] += seconds if isinstance(seconds, float) else 0.0
    return dict(parts)


# The files


def diffs_of(root: Path, tag: str) -> dict[int, str]:
    """Why and how each experiment changed train.py, by number, and all that was kept under WHOLE."""
    prefix = f"refs/autoresearch/{tag}/"
    refs = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", prefix) if tag else ""
    numbers = {line.split()[0]: int(line.rpartition("/")[2]) for line in refs.splitlines()}
    if not numbers:
        return {}
    text = _git(root, "log", "--no-walk", "--stdin", "-p", "--no-ext-diff", "--format=%x00%H%n%b%x00",
                stdin="\n".join([*numbers, "--", "train.py"]))
    parts = text.split("\0")[1:]  # neither a message nor a train.py that compiles can hold a NUL
    diffs = {}
    for why, diff in zip(parts[::2], parts[1::2], strict=True):
        commit, _, reasoning = why.partition("\n")
        diffs[numbers[commit]] = f"{indent(reasoning.strip(), '    ')}\n{_hunks(diff)}".lstrip("\n")
    whole = _git(root, "diff", "--no-ext-diff", f"{prefix}0", f"refs/heads/autoresearch/{tag}", "--", "train.py")
    return diffs | {WHOLE: _hunks(whole)}


def _hunks(diff: str) -> str:
    """A diff of one file without its head."""
    return "".join(diff.partition("\n@@")[1:]).lstrip("\n")


def _git(root: Path, *words: str, stdin: str = "") -> str:
    plain = ("-c", "color.ui=false", "-c", "log.showSignature=false")
    return subprocess.run(["git", *plain, *words], cwd=root, input=stdin, capture_output=True, text=True,
                          encoding="utf-8", errors="replace").stdout


def write(folder: Path, rows: Sequence[Row], program: str, diffs: Mapping[int, str], runs: Path | None = None) -> None:
    """Write progress.png and report.html; diffs as diffs_of() gives them."""
    title = one_line(f"autoresearch/{runs.name}" if runs else "autoresearch", 80)
    now = night(rows)
    png, svg = picture.draw(now.moments, now.sigma, f"{title}, experiments {_counts(now)}", headline(rows))
    text = page(rows, title, diffs, program, runs, svg)
    for name, data in (("report.html", text.encode("utf-8", "replace")), ("progress.png", png)):
        partial = folder / f".{name}.{os.getpid()}"  # the loop may redraw at the same moment
        try:
            partial.write_bytes(data)
            os.replace(partial, folder / name)
        finally:
            partial.unlink(missing_ok=True)


def page(rows: Sequence[Row], title: str, diffs: Mapping[int, str], program: str, runs: Path | None = None,
         svg: str = "") -> str:
    """The whole page. Every value is escaped by the template, the drawing aside."""
    from jinja2 import Template
    from markupsafe import Markup

    now, ranking = night(rows), confirm.ranking(night(rows).history)
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"), autoescape=True)
    return template.render(
        title=title, headline=headline(rows), facts=_facts(now, runs) if now.history else (), svg=Markup(svg),
        keeps=_keeps(now), ranking=[(w, _worth(w)) for w in ranking], advice=removal_advice(ranking),
        whole=_colored(diffs.get(WHOLE, "")[:MAX_DIFF_CHARS]), table=_table(now, diffs), program=program,
        n_busy=Counter(row.experiment for row in rows if row.status is Status.BUSY), line=one_line)


def _table(now: Night, diffs: Mapping[int, str]) -> Iterator[tuple[Experiment, Moment | None, str, int]]:
    """(experiment, its own moment, its diff, characters of it that were cut), the newest first."""
    own = {moment.row.experiment: moment for moment in now.moments if moment.is_own}
    left = MAX_DIFFS_CHARS
    for experiment in reversed(now.history):
        diff = diffs.get(experiment.number, "")
        shown = diff[:min(MAX_DIFF_CHARS, left)]
        left -= len(shown)
        yield experiment, own.get(experiment.number), _colored(shown), len(diff) - len(shown)


def _colored(diff: str) -> str:
    """A diff as markup: escaped, its added and removed lines marked."""
    from markupsafe import Markup, escape

    added = re.sub(r"(?m)^(\+.*)$", r"<ins>\1</ins>", str(escape(diff)))
    return Markup(re.sub(r"(?m)^(-.*)$", r"<del>\1</del>", added))
