"""Figures for any number of models: a row a model, its name beside it, so that no colour has to be matched with a legend."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from veclip_core.evaluation.report.figures import INK, LINE, MODELS, MUTED, Rows, as_svg, blank

SHADES = (1.0, 0.5, 0.24)
NAME_WIDTH, NAME_LINES = 20, 2


def nested_figure(
    rows: Rows,
    models: Sequence[str],
    labels: Mapping[str, str],
    levels: Mapping[str, str],
    title: str,
    baseline: str | None,
) -> str:
    """Bars within each other, R@1 in R@5 in R@10, each with its interval; chance as dashed lines.

    Args:
        levels: metric to its name, the hardest first; at most three.
        baseline: drawn in grey.
    """
    figure, axes = blank(height=0.95 + 0.36 * len(models))
    offsets = np.linspace(-0.2, 0.2, len(levels)) if len(levels) > 1 else np.zeros(1)
    for place, model in enumerate(models):
        colour = MODELS[0] if model == baseline else MODELS[1]
        for level, metric in reversed(list(enumerate(levels))):
            row = rows[model, "all", metric]
            axes.barh(place, row["value"], 0.72, color=colour, alpha=SHADES[level], linewidth=0)
            y = place + offsets[level]
            axes.plot([row["low"], row["high"]], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
    for metric in levels:
        if (chance := rows[models[0], "all", metric]["chance"]) is not None:
            axes.axvline(chance, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    axes.set_yticks(range(len(models)), [short(labels[model]) for model in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_xlabel("percent; dashed: chance")
    return as_svg(figure, f"{title}. {_told(rows, models, labels, levels)}")


def ranks_figure(
    rows: Rows, models: Sequence[str], labels: Mapping[str, str], metrics: Mapping[str, str], title: str
) -> str:
    """Points with intervals on a logarithmic axis, the first metric filled, the second hollow; 1 is best."""
    figure, axes = blank(height=0.95 + 0.36 * len(models))
    for number, (metric, name) in enumerate(metrics.items()):
        colour = MODELS[1] if number == 0 else MODELS[2]
        for place, model in enumerate(models):
            row, y = rows[model, "all", metric], place + (number - 0.5) * 0.3
            axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.8, solid_capstyle="round")
            axes.plot(row["value"], y, "os"[number], color=colour, markersize=5.5, label=name if place == 0 else None,
                      linestyle="none")  # fmt: skip
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(0.9, low), max(high, 3))
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1_000, 10_000, 100_000) if tick <= max(high, 3)]
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks(range(len(models)), [short(labels[model]) for model in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_xlabel("median rank of the right match")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK, handletextpad=0.2)
    return as_svg(figure, f"{title}. {_told(rows, models, labels, metrics)}")


def short(name: str) -> str:
    """A name on at most two lines."""
    lines = textwrap.wrap(name, NAME_WIDTH) or [""]
    return "\n".join(lines[:NAME_LINES]) + ("…" if len(lines) > NAME_LINES else "")


def _told(rows: Rows, models: Sequence[str], labels: Mapping[str, str], metrics: Mapping[str, str]) -> str:
    return "; ".join(
        f"{labels[model]}: "
        + ", ".join(f"{name} {rows[model, 'all', metric]['value']:.2f}" for metric, name in metrics.items())
        for model in models
    )
