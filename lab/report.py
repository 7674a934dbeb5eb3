"""The morning: what the rows say, as text, as progress.png and as report.html. A pure reader of results.tsv.

Promises: it writes those two files alone, each whole or not at all; the headline is the confirmed difference with its
standard error or plainly "not confirmed yet", never the running minimum; whatever a model or a trial wrote is escaped.
"""

import html
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import ledger
from lab.ledger import Experiment

DIFF_CHARS = 20_000   # of one experiment's change
COLOURS = {"keep": "#0072B2", "discard": "#999999", "crash": "#D55E00"}  # told apart by colour-blind eyes too


def confirmed(history: Sequence[Experiment]) -> tuple[float, float, int] | None:
    """(incumbent less baseline, standard error, trials) on the test split; None before two trials of each."""
    best = ledger.incumbent(history)
    if best is None or best.number == history[0].number:
        return None
    samples = [[row.val_bpb for row in experiment.rows if row.split == "test" and row.val_bpb is not None]
               for experiment in (history[0], best)]
    if min(map(len, samples)) < 2:
        return None
    means = [sum(values) / len(values) for values in samples]
    variance = sum(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
                   for values, mean in zip(samples, means, strict=True))
    return means[1] - means[0], variance ** 0.5, sum(map(len, samples))


def headline(history: Sequence[Experiment]) -> str:
    best = ledger.incumbent(history)
    if best is None:
        return "Nothing is measured yet."
    if best.number == history[0].number:
        return "No experiment was kept: the baseline stands."
    if (result := confirmed(history)) is None:
        return "Not confirmed yet: python agent.py confirm measures baseline and incumbent anew, on the test split."
    difference, error, n = result
    verdict = ("a real gain" if difference < -2 * error else "a real loss" if difference > 2 * error else
               "not to be told from noise")
    return f"Confirmed on the test split: {difference:+.6f} ± {error:.6f} val_bpb ({n} trials), {verdict}."


def summary(history: Sequence[Experiment], runs: Path | None = None) -> str:
    """The session in a dozen lines."""
    rows = [row for experiment in history for row in experiment.rows]
    best, noise = ledger.incumbent(history), ledger.sigma(history)
    lines = [headline(history)]
    if best is not None and best.val_bpb is not None and history[0].val_bpb is not None:
        lines.append(f"incumbent: #{best.number} {best.commit} val_bpb {best.val_bpb:.6f} "
                     f"(baseline {history[0].val_bpb:.6f})")
    lines.append("noise between seeds: " + ("not measured yet" if noise is None else f"{noise:.6f}"))
    counts = [f"{sum(e.status == status for e in history)} {status}" for status in ("keep", "discard", "crash")]
    repeats = sum(row.status == "repeat" for row in rows)
    lines.append(f"experiments: {len(history)} ({', '.join(counts)}), repeats: {repeats}")
    total, trained = sum(row.total_seconds for row in rows), sum(row.train_seconds for row in rows)
    if total:
        lines.append(f"time in trials: {total / 3600:.2f} h, {100 * trained / total:.0f} % of it training")
    if phases := seconds_by_part(runs):
        lines.append("seconds a trial: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items()))
    lines.append(f"spent: ${sum(row.usd for row in rows):.2f}")
    previous = None
    for experiment in (e for e in history if e.status == "keep"):
        gain = "" if previous is None else f" {experiment.val_bpb - previous:+.6f}"
        lines.append(f"  kept #{experiment.number} {experiment.val_bpb:.6f}{gain}  {experiment.own.description}")
        previous = experiment.val_bpb
    return "\n".join(lines)


def seconds_by_part(runs: Path | None) -> dict[str, float]:
    """Mean seconds a trial by part: start, train, score, stop."""
    trials = [json.loads(path.read_text())["phases"] for path in sorted(runs.glob("*.json"))] if runs else []
    names = list(trials[0]) if trials else []
    return {name: sum(trial.get(name, 0.0) for trial in trials) / len(trials) for name in names}


def write(folder: Path, history: Sequence[Experiment], program: str, diffs: Mapping[int, str],
          runs: Path | None = None) -> None:
    """progress.png and report.html."""
    replace(folder / "progress.png", lambda path: draw(history, path))
    page = render(history, program, diffs, summary(history, runs))
    replace(folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def diffs_of(root: Path, tag: str) -> dict[int, str]:
    """What each experiment changed in train.py, by number, bounded; one call of git for all of them."""
    prefix = f"refs/autoresearch/{tag}/"
    refs = git(root, "for-each-ref", "--format=%(objectname) %(refname)", prefix) if tag else ""
    numbers = {line.split()[0]: int(line.rpartition("/")[2]) for line in refs.splitlines()}
    text = git(root, "diff-tree", "--stdin", "-p", "--no-color", "--no-ext-diff", "--", "train.py",
               stdin="\n".join(numbers) + "\n") if numbers else ""
    diffs, number = {}, None
    for line in text.split("\n"):
        if line in numbers:
            number = numbers[line]
            diffs[number] = []
        elif number is not None:
            diffs[number].append(line)
    return {number: "\n".join(lines[4:])[:DIFF_CHARS] for number, lines in diffs.items()}


def git(root: Path, *words: str, stdin: str = "") -> str:
    return subprocess.run(["git", *words], cwd=root, input=stdin, capture_output=True, text=True,
                          errors="replace").stdout


def replace(path: Path, make) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    beside = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    make(beside)
    os.replace(beside, path)


def estimates(history: Sequence[Experiment]) -> list[float | None]:
    """The incumbent's estimate after each experiment."""
    current, steps = None, []
    for experiment in history:
        current = experiment.val_bpb if experiment.status == "keep" else current
        steps.append(current)
    return steps


def draw(history: Sequence[Experiment], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    measured = [e for e in history if e.val_bpb is not None]
    low, high = limits(measured)
    for status, marker, size in (("discard", "o", 16), ("keep", "o", 42)):
        points = [e for e in measured if e.status == status]
        axes.scatter([e.number for e in points], [min(e.val_bpb, high) for e in points], s=size, c=COLOURS[status],
                     marker=marker, label=status, zorder=3, edgecolors="white", linewidths=0.5)
    crashes = [e.number for e in history if e.status == "crash"]
    axes.scatter(crashes, [high] * len(crashes), marker="x", s=24, c=COLOURS["crash"], label="crash", zorder=3)
    repeats = [(e.number, row.val_bpb) for e in measured for row in e.rows
               if row.status == "repeat" and row.split == "val" and row.val_bpb is not None]
    if repeats:
        axes.scatter(*zip(*repeats, strict=True), marker="d", s=20, facecolors="none", edgecolors="#009E73",
                     label="repeat")
    steps = [(e.number, value) for e, value in zip(history, estimates(history), strict=True) if value is not None]
    if steps:
        x, y = zip(*steps, strict=True)
        axes.step(x, y, where="post", c=COLOURS["keep"], lw=1.5, label="incumbent's estimate")
        if noise := ledger.sigma(history):
            axes.fill_between(x, [v - noise for v in y], [v + noise for v in y], step="post", alpha=0.15,
                              color=COLOURS["keep"])
    label(axes, [e for e in measured if e.status == "keep"])
    axes.set(xlabel="experiment", ylabel="val_bpb (lower is better)", ylim=(low, high + 0.02 * (high - low)),
             title=headline(history).split(":")[0])
    axes.title.set_fontsize(11)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    figure.savefig(path)


def limits(measured: Sequence[Experiment]) -> tuple[float, float]:
    """The axis: all keeps, and discards as far as three quarters of them reach; worse ones sit on the rim."""
    values = sorted(e.val_bpb for e in measured)
    if not values:
        return 0.0, 1.0
    top = max([e.val_bpb for e in measured if e.status == "keep"] + [values[3 * len(values) // 4]])
    room = max(top - values[0], 1e-3)
    return values[0] - 0.25 * room, top + 0.1 * room


def label(axes, keeps: Sequence[Experiment], most: int = 12) -> None:
    """Name the largest gains, each under its point and clear of the one before."""
    gains = sorted(range(1, len(keeps)), key=lambda i: keeps[i].val_bpb - keeps[i - 1].val_bpb)[:most]
    for place, i in enumerate(sorted(gains)):
        keep = keeps[i]
        axes.annotate(ledger.one_line(keep.own.description, 32), (keep.number, keep.val_bpb), fontsize=7, rotation=-25,
                      xytext=(4, -8 - 9 * (place % 3)), textcoords="offset points", va="top", parse_math=False)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>autoresearch</title><style>
:root{{color-scheme:light dark}}body{{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:auto;padding:1rem}}
h1{{font-size:1.2rem}}table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.2rem .5rem;
border-bottom:1px solid #8884;vertical-align:top}}th{{cursor:pointer}}
pre{{overflow:auto;background:#8881;padding:.5rem}}
.keep{{font-weight:600}}.crash{{color:#D55E00}}svg{{width:100%;height:auto}}input{{width:100%;padding:.4rem}}
td.n{{font-variant-numeric:tabular-nums;white-space:nowrap}}.t{{overflow-x:auto}}</style>
<h1>{headline}</h1><pre>{summary}</pre>{chart}
<p><input id="filter" placeholder="filter: keep, optimizer, 0.97 ..." aria-label="filter"></p>
<div class="t"><table id="rows"><thead><tr><th>#<th>val_bpb<th>status<th>description<th>by<th>note</tr></thead>
<tbody>{rows}</tbody></table></div><details><summary>program.md</summary><pre>{program}</pre></details><script>
const body=document.querySelector('#rows tbody'),rows=[...body.rows];
document.querySelector('#filter').oninput=e=>{{const w=e.target.value.toLowerCase();
rows.forEach(r=>r.hidden=!r.textContent.toLowerCase().includes(w))}};
document.querySelectorAll('#rows th').forEach((h,i)=>{{let up=1;h.onclick=()=>{{rows.sort((a,b)=>{{
const x=a.cells[i].dataset.v||'',y=b.cells[i].dataset.v||'';
return up*(i<2?(x===''?1e9:+x)-(y===''?1e9:+y):x.localeCompare(y))}});up=-up;body.append(...rows)}}}});
</script></html>
"""


def render(history: Sequence[Experiment], program: str, diffs: Mapping[int, str], text: str) -> str:
    escape = html.escape
    rows = []
    for e in history:
        value = "" if e.val_bpb is None else f"{e.val_bpb:.6f}"
        diff = diffs.get(e.number, "")
        folded = f"<details><summary>diff</summary><pre>{escape(diff)}</pre></details>" if diff else ""
        cells = ((str(e.number), "n", ""), (value, "n", ""), (e.status, "", ""), (e.own.description, "", folded),
                 (e.own.source, "", ""), (e.own.note, "", ""))
        rows.append(f'<tr class="{escape(e.status)}">' + "".join(
            f'<td class="{style}" data-v="{escape(content)}">{escape(content)}{more}</td>'
            for content, style, more in cells) + "</tr>")
    return PAGE.format(headline=escape(headline(history)), summary=escape(text), chart=chart(history),
                       rows="\n".join(rows), program=escape(program))


def chart(history: Sequence[Experiment], width: int = 900, height: int = 360) -> str:
    """The same picture as inline SVG, a tooltip a point."""
    low, high = limits([e for e in history if e.val_bpb is not None])
    last = max((e.number for e in history), default=1) or 1

    def place(number: int, value: float) -> tuple[float, float]:
        return 40 + (width - 60) * number / last, 10 + (height - 30) * (1 - (min(value, high) - low) / (high - low))

    marks = []
    for e in history:
        x, y = place(e.number, high if e.val_bpb is None else e.val_bpb)
        value = "" if e.val_bpb is None else f"{e.val_bpb:.6f}"
        tip = html.escape(f"#{e.number} {e.status} {value} {e.own.description}")
        radius = 5 if e.status == "keep" else 3
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{COLOURS.get(e.status, "#999")}">'
                     f"<title>{tip}</title></circle>")
    steps = [place(e.number, value) for e, value in zip(history, estimates(history), strict=True) if value is not None]
    path = "".join(f"M{x:.1f} {y:.1f}" if i == 0 else f"H{x:.1f}V{y:.1f}" for i, (x, y) in enumerate(steps))
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="val_bpb by experiment">'
            f'<path d="{path}" fill="none" stroke="{COLOURS["keep"]}" stroke-width="1.5"/>{"".join(marks)}'
            f'<text x="2" y="14" font-size="11" fill="currentColor">{high:.4f}</text>'
            f'<text x="2" y="{height - 20}" font-size="11" fill="currentColor">{low:.4f}</text></svg>')
