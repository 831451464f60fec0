"""Figures as inline SVG whose colours are the page's CSS variables, so that they follow light, dark and print."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.evaluation.report.inputs import LossCurve
from veclip_core.evaluation.report.words import SPLIT_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib is given these colours; the finished SVG gets the CSS variables in their place.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
MODELS = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909")
CSS_VARIABLES = {
    INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)",
    MODELS[0]: "var(--base)", MODELS[1]: "var(--ours)", MODELS[2]: "var(--third)", MODELS[3]: "var(--fourth)",
    MODELS[4]: "var(--fifth)", MODELS[5]: "var(--sixth)",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
SMOOTH_OVER = 20

Rows = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""Summary rows of one set by (model, split, metric)."""


def headline_figure(rows: Rows, models: Sequence[str], labels: Mapping[str, str], metric: str, title: str) -> str:
    """Points with intervals for each split, chance as a dashed line."""
    splits = [split for split in SPLIT_NAMES if (models[0], split, metric) in rows]
    apart = min(0.26, 0.8 / len(models))
    figure, axes = blank(height=0.75 + (0.4 + 0.11 * len(models)) * len(splits))
    for place, split in enumerate(splits):
        for number, model in enumerate(models):
            row = rows[model, split, metric]
            y = place + (number - (len(models) - 1) / 2) * apart
            axes.plot([row["low"], row["high"]], [y, y], color=colour_of(number), linewidth=2, solid_capstyle="round")
            axes.plot(row["value"], y, "o", color=colour_of(number), markersize=6)
    chance = rows[models[0], "all", metric]["chance"]
    axes.axvline(chance, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate(
        "chance", (chance, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=MUTED, fontsize=8
    )
    axes.set_yticks(range(len(splits)), [_two_lines(SPLIT_NAMES[split]) for split in splits])
    axes.set_ylim(len(splits) - 0.45, -0.55)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_xlabel("percent")
    return as_svg(figure, f"{title}: " + "; ".join(
        f"{labels[m]} {rows[m, 'all', metric]['value']:.2f}" for m in models
    ) + f"; chance {chance:.2f}")  # fmt: skip


def bars_figure(
    rows: Rows, models: Sequence[str], labels: Mapping[str, str], ticks: Mapping[str, str], title: str
) -> str:
    """Grouped bars with intervals, chance as a short line across each group. `ticks`: metric -> text below it."""
    figure, axes = blank(height=2.5)
    width = 0.74 / len(models)
    for number, model in enumerate(models):
        found = [rows[model, "all", metric] for metric in ticks]
        x = np.arange(len(ticks)) + (number - (len(models) - 1) / 2) * width
        axes.bar(x, [row["value"] for row in found], width * 0.92, color=colour_of(number), linewidth=0)
        axes.vlines(x, [row["low"] for row in found], [row["high"] for row in found], color=INK, linewidth=1.1)
    chances = [rows[models[0], "all", metric]["chance"] for metric in ticks]
    axes.hlines(chances, np.arange(len(ticks)) - 0.45, np.arange(len(ticks)) + 0.45, color=MUTED, linewidth=1.1,
                linestyle=(0, (3, 2)))  # fmt: skip
    axes.set_xticks(range(len(ticks)), list(ticks.values()))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_ylabel("percent")
    values = "; ".join(f"{tick}: " + ", ".join(f"{labels[m]} {rows[m, 'all', metric]['value']:.2f}" for m in models)
                       for metric, tick in ticks.items())  # fmt: skip
    return as_svg(figure, f"{title}. {values}")


def loss_figure(curves: Sequence[LossCurve], models: Sequence[str]) -> str:
    """Every seed: the logged loss faintly, its running mean on top."""
    figure, axes = blank(height=2.7)
    for curve in curves:
        colour = colour_of(models.index(curve.model) if curve.model in models else len(models))
        steps, losses = np.asarray(curve.steps), np.asarray(curve.losses, dtype=np.float64)
        window = max(1, min(SMOOTH_OVER, len(losses) // 10))
        axes.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.28)
        if len(losses) >= window:
            smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.5)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    return as_svg(figure, "Training loss by step")


def lengths_figure(lengths: Mapping[str, Mapping[int, int]], longest: int = 60) -> str:
    """Lines: words of a text against the share of texts, a line a kind of text."""
    figure, axes = blank(height=2.4)
    told = []
    for number, (name, counts) in enumerate(lengths.items()):
        total = sum(counts.values())
        if not total:
            continue
        x = np.arange(min(longest, max(counts)) + 1)
        axes.plot(
            x, [100 * counts.get(int(n), 0) / total for n in x], color=colour_of(number), linewidth=1.5, label=name
        )
        told.append(f"{name}: mean {sum(n * count for n, count in counts.items()) / total:.1f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("words")
    axes.set_ylabel("percent of texts")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return as_svg(figure, f"Words of a text. {'; '.join(told)}")


def shares_figure(shares: Mapping[str, Sequence[float]], label: str) -> str:
    """Cumulative lines: which share of the texts has at most this value, a line a name."""
    figure, axes = blank(height=2.4)
    told = []
    for number, (name, values) in enumerate(shares.items()):
        if not len(values):
            continue
        x = np.sort(np.asarray(values, dtype=np.float64))
        axes.step(
            x, 100 * np.arange(1, len(x) + 1) / len(x), where="post", color=colour_of(number), linewidth=1.5, label=name
        )
        told.append(f"{name}: mean {x.mean():.2f}")
    axes.set_xlabel(label)
    axes.set_ylabel("percent of texts at or below")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    return as_svg(figure, f"{label}. {'; '.join(told)}")


def colour_of(number: int) -> str:
    return MODELS[number % len(MODELS)]


def _two_lines(text: str) -> str:
    words = text.split()
    return text if len(text) < 16 else f"{' '.join(words[: len(words) // 2])}\n{' '.join(words[len(words) // 2 :])}"


def blank(height: float) -> "tuple[Figure, Axes]":
    """A figure of the page's width with one panel."""
    figure, panels = panels_of(height, 1, 1)
    return figure, panels[0]


def panels_of(height: float, rows: int, columns: int) -> "tuple[Figure, list[Axes]]":
    """A figure of the page's width with its panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, height), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in panels:
        _quiet(axes)
    return figure, panels


def _quiet(axes: "Axes") -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)
    axes.set_axisbelow(True)


def as_svg(figure: "Figure", description: str) -> str:
    """The finished figure as inline SVG; `description` is for those who can't see it."""
    import matplotlib
    from markupsafe import escape

    out = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # parse_math off: a dollar sign in a name is a dollar sign.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "text.parse_math": False}):
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', lambda found: (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{found[1]}" '
        f'role="img" aria-label="{escape(description)}">'
    ), svg, count=1)  # fmt: skip
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]+", rf"font: \1px {FONT}", svg)
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
