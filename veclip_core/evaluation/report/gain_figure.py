"""What enriched captions gain at each size of the data: the paper's rows as reference lines, and one's own models beside them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.evaluation.paper import COLUMNS, MISPRINTS, PAPER_SETS, ROWS, Misprint, PaperRow, paper_set
from veclip_core.evaluation.report.figures import INK, LINE, MODELS, MUTED, as_svg, panels_of
from veclip_core.evaluation.report.inputs import Chart
from veclip_core.evaluation.report.rendering import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = {"3M": 3.0, "12M": 12.0, "100M": 100.0, "200M": 200.0}
"""Millions of pairs, of the paper's rows that come as a pair of CLIP and VeCLIP."""
DRAWN = {"CLIP-B/16": MODELS[0], "VeCLIP-B/16": MODELS[1]}


@dataclass(frozen=True)
class OwnPoint:
    """A score of one's own in a column of the paper's table."""

    name: str
    """Of the model, as the legend shows it."""
    baseline: bool
    """Whether it was trained on AltText alone."""
    millions: float
    """Pairs it was trained on."""
    column: str
    value: float
    low: float
    high: float


def own_points(
    results: Mapping[str, Any], millions: Mapping[str, float], alt_text_only: Collection[str]
) -> list[OwnPoint]:
    """The points of one's own trainings.

    Args:
        millions: model to the pairs that it was trained on; others get no point.
        alt_text_only: models that were trained as the paper's baseline.
    """
    rows = {(r["model"], r["set"], r["metric"]): r for r in results["summary"] if r["split"] == "all"}
    points = []
    for (name, column), metric in metrics_of_columns(results).items():
        for model, pairs in millions.items():
            if row := rows.get((model, name, metric)):
                base = model in alt_text_only
                points.append(OwnPoint(model, base, pairs, column, row["value"], row["low"], row["high"]))
    return points


def gain_charts(results: Mapping[str, Any]) -> list[Chart]:
    """The chart, where a set is one of the paper's and a model is a training of ours, as `evaluated` tells; else none."""
    rows = [row for row in results.get("evaluated", ()) if row.get("millions") is not None]
    millions = {row["model"]: float(row["millions"]) for row in rows}
    own = own_points(results, millions, {row["model"] for row in rows if row.get("alt_text_only")})
    return [gain_chart(own=own)] if own else []


def metrics_of_columns(results: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(Set, column of the paper's table) to the metric that stands in it, of the sets that the table has."""
    found = {}
    for name, of_set in results["sets"].items():
        if known := paper_set(name):
            classes = max(of_set["classes"], key=lambda label: of_set["classes"][label], default="")
            for column, metric in PAPER_SETS[known].metrics.items():
                found[name, column] = f"{metric}_{classes}" if metric.startswith("zeroshot") else metric
    return found


def gain_chart(rows: Sequence[PaperRow] = ROWS, own: Sequence[OwnPoint] = ()) -> Chart:
    """A panel a column of the table: both of the paper's models by the size of their data, what the second gains written above,
    and one's own models as points. A misprinted cell whose true value is unknown is left out; one that can be read is marked."""
    figure, panels = panels_of(6.3, 3, 2)
    told = [told for axes, column in zip(panels, COLUMNS, strict=True) for told in _panel(axes, column, rows, own)]
    for axes, column in zip(panels, COLUMNS, strict=True):
        axes.set_title(COLUMNS[column], loc="left", fontsize=9.5, color=INK, pad=9)
    handles, names = panels[0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(
        list(unique.values()),
        list(unique),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    marked = "; ".join(f"{one.mark} {one.note}" for one in MISPRINTS)
    note = "published; the gain of VeCLIP over CLIP is written above" + (", own models as points" if own else "")
    return Chart("Gain against scale", f"{note}. {marked}", as_svg(figure, f"Gain against scale. {'; '.join(told)}"))


def _panel(axes: "Axes", column: str, rows: Sequence[PaperRow], own: Sequence[OwnPoint]) -> list[str]:
    values: dict[str, dict[str, float]] = {}
    for model, colour in DRAWN.items():
        misprints = {row.data: _misprint(row, column) for row in rows if row.model == model}
        values[model] = {
            row.data: getattr(row, column)
            for row in rows
            if row.model == model and row.data in SIZES and _read(row, column)
        }
        x = [_place(SIZES[data]) for data in values[model]]
        axes.plot(
            x,
            list(values[model].values()),
            "-o",
            color=colour,
            linewidth=1.6,
            markersize=4,
            label=f"{model}, published",
        )
        for data, value in values[model].items():
            if one := misprints[data]:
                axes.annotate(
                    one.mark,
                    (_place(SIZES[data]), value),
                    xytext=(4, -9),
                    textcoords="offset points",
                    fontsize=9,
                    color=INK,
                )
    clip, veclip = values.values()
    for data in clip.keys() & veclip.keys():
        place = (_place(SIZES[data]), veclip[data])
        gain = f"+{veclip[data] - clip[data]:.1f}"
        axes.annotate(gain, place, xytext=(-4, 6), textcoords="offset points", ha="center", fontsize=8, color=MUTED)
    for row in rows:
        if (one := _misprint(row, column)) and not _read(row, column):
            axes.annotate(
                f"{one.mark} left out", (0.02, 0.02), xycoords="axes fraction", fontsize=8, color=MUTED, va="bottom"
            )
    for point in own:
        if point.column == column:
            colour = MODELS[0] if point.baseline else MODELS[1]
            axes.plot([_place(point.millions)] * 2, [point.low, point.high], color=colour, linewidth=1.4)
            axes.plot(
                _place(point.millions), point.value, "D", markersize=6, markerfacecolor="none" if point.baseline else colour,
                markeredgecolor=colour, linestyle="none", label=f"{clean(point.name, 40)}, here",
            )  # fmt: skip
    axes.set_xticks(range(len(SIZES)), [*SIZES])
    axes.set_xlim(min([0.0, *(_place(point.millions) for point in own)]) - 0.45, len(SIZES) - 0.6)
    axes.margins(y=0.16)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    return [
        f"{COLUMNS[column]}, {model}: " + ", ".join(f"{data} {value:.2f}" for data, value in of.items())
        for model, of in values.items()
    ]


def _place(millions: float) -> float:
    """On an axis whose ticks are the paper's sizes at equal distances; between and beyond them logarithmic."""
    logs = np.log10(list(SIZES.values()))
    at = float(np.log10(millions))
    if at < logs[0]:
        return (at - logs[0]) / (logs[1] - logs[0])
    return float(np.interp(at, logs, range(len(SIZES))))


def _misprint(row: PaperRow, column: str) -> Misprint | None:
    of = (row.data, row.model, column)
    return next((one for one in MISPRINTS if (one.data, one.model, one.column) == of), None)


def _read(row: PaperRow, column: str) -> bool:
    """Whether the cell's value is known: not where the table repeats what is misprinted, for want of better."""
    found = _misprint(row, column)
    return found is None or float(found.printed) != getattr(row, column)
