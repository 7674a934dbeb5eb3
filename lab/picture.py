"""One drawing of a session, as progress.png and as the inline SVG of report.html.

Promises: every trial on the validation split is one point, in the order of the file; outliers are drawn
at the upper edge. In the SVG, text stays text, and a point links only to its experiment's row.
"""

import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np

from lab.ledger import STEERED, one_line
from lab.timeline import Moment

# The page's variables and their colours here, which colour-blind eyes tell apart (Okabe-Ito).
COLORS = {"keep": "#009e73", "discard": "#8a8a8a", "crash": "#d55e00", "repeat": "#cc79a7",
          "line": "#0072b2", "ink": "#000000", "rule": "#dcdfe4"}
MARKERS = {"discard": ".", "repeat": "D", "crash": "x", "keep": "o"}  # in the order of drawing
MAX_NAMES = 12  # keeps that are named, the largest gains first
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "same bytes", "font.sans-serif": "DejaVu Sans"}


def draw(moments: Sequence[Moment], sigma: float | None, title: str, subtitle: str,
         curves: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[bytes, str]:
    """(PNG, SVG element) of a session; sigma is the noise of one trial, curves are (second, loss) by name."""
    os.environ["MPLBACKEND"] = "agg"  # the user's may be one that is not installed
    import matplotlib
    from matplotlib.figure import Figure

    png, svg = BytesIO(), BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(12, 6), layout="constrained")
        grid = figure.add_gridspec(1, 4)
        trials = figure.add_subplot(grid[:3] if curves else grid[:])
        _draw_trials(trials, moments, sigma or 0)
        if curves:
            losses = figure.add_subplot(grid[3])
            losses.set(xlabel="seconds", ylabel="training loss")
            for (name, curve), color in zip(curves.items(), ("discard", "line"), strict=False):
                losses.plot(*zip(*curve, strict=True), color=COLORS[color], label=name)
            losses.legend(frameon=False, fontsize=9)
            losses.patch.set_gid("losses")
        for axes in figure.axes:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.grid(axis="y", color=COLORS["rule"])
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", parse_math=False)
        trials.set_title(subtitle, loc="left", fontsize=10, parse_math=False)
        figure.legend(*trials.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(png, format="png", dpi=120)
    text = svg.getvalue().decode().replace(' target="_blank"', "")
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    if curves:  # the page's script draws more of them here
        limits = " ".join(f"{limit:g}" for limit in (*losses.get_xlim(), *losses.get_ylim()))
        text = text.replace('id="losses"', f'id="losses" data-limits="{limits}"')
    return png.getvalue(), text[text.index("<svg"):]


def _draw_trials(axes, moments: Sequence[Moment], sigma: float) -> None:
    """Every trial a point, the incumbent's estimate a line with a band of one standard error."""
    low, high = scale([m.row.val_bpb for m in moments if m.row.val_bpb is not None])
    rim, last = high + 0.06 * (high - low), max([m.place for m in moments], default=0)
    axes.set_xlim(-0.12 * max(last, 5), max(1.02 * last, 5))  # names need room at the left and below
    axes.set_ylim(low - 0.3 * (high - low), rim + 0.03 * (high - low))
    axes.set(xlabel="experiment", ylabel="val_bpb (lower is better)")
    known = [moment for moment in moments if moment.after is not None]
    # Trials that run at once end in another order than that of their numbers; the line never goes back.
    x = np.maximum.accumulate([moment.place for moment in known])
    y = np.array([moment.after for moment in known])
    error = sigma / np.sqrt([moment.n_trials for moment in known])
    axes.step(x, y, where="post", color=COLORS["line"], label="incumbent's estimate")
    axes.fill_between(x, y - error, y + error, step="post", color=COLORS["line"], alpha=0.25, linewidth=0)
    size = min(7.0, max(2.5, 60 / math.sqrt(len(moments) + 1)))
    for order, (status, marker) in enumerate(MARKERS.items(), start=3):
        mine = [m for m in moments if status == ("crash" if m.row.val_bpb is None else m.row.status)]
        heights = [min(m.row.val_bpb or rim, rim) for m in mine]
        drawn = axes.scatter([m.place for m in mine], heights, size**2, COLORS[status],
                             marker=marker, label=status, zorder=order)
        drawn.set_urls([f"#e{m.row.experiment}" for m in mine])
    if any(m.row.val_bpb is None or m.row.val_bpb > rim for m in moments):
        axes.axhline(rim, color=COLORS["discard"], linewidth=0.8, linestyle=":", label="crashed, or above the scale")
    steered = [m.place for m in moments if m.row.is_steered]
    if steered:
        axes.vlines(steered, 0, 1, COLORS["ink"], transform=axes.get_xaxis_transform(), linewidth=0.8,
                    linestyle="--", label=STEERED, gid="steered")
    gains = [m for m in moments if m.row.status == "keep" and m.delta is not None]
    for moment in sorted(gains, key=lambda moment: moment.delta)[:MAX_NAMES]:
        place = moment.place, moment.row.val_bpb  # a falling line leaves room down to the left
        axes.annotate(one_line(moment.row.description, 28), place, (-3, -4), textcoords="offset points",
                      rotation=30, rotation_mode="anchor", ha="right", va="top", fontsize=8,
                      parse_math=False).set_in_layout(False)


def scale(values: Sequence[float]) -> tuple[float, float]:
    """(lowest, highest) val_bpb of the axis; the highest is the baseline's or the 90th percentile, if larger."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite[0], sorted(finite)[int(0.9 * (len(finite) - 1))])
    return low, high if high > low else low * 1.01 + 0.01
