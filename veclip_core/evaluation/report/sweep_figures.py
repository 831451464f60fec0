"""Figures of the sweeps: a panel a metric, the models along the sweep's axis with their intervals, chance as a dashed line.

For a page they are inline SVG in its colours; for documentation a file on white.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core.evaluation.report import words
from veclip_core.evaluation.report.figures import INK, LINE, MODELS, MUTED, as_svg, panels_of
from veclip_core.evaluation.report.inputs import Chart
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from veclip_core.training.sweeps import Sweep

PANEL_INCHES = 1.75
DOTS_PER_INCH = 160
APART = 1.03
"""Factor between lines on a log axis."""
CHANCE_WITHIN = 1.0
"""How far outside of the values chance may be to be drawn, in heights of what they span."""
FORMATS = (".svg", ".png")
ON_WHITE = {
    INK: "#1c2127", MUTED: "#66707c", LINE: "#dfe3e8", MODELS[0]: "#97a1ae", MODELS[1]: "#1f6fd1", MODELS[2]: "#c9852b",
    MODELS[3]: "#8a63b8", MODELS[4]: "#2f9c95", MODELS[5]: "#c2527a",
}  # fmt: skip
"""The page's light colours (`style.css`)."""

CLAIMS = {0.11: "paper: 11 % of ALIGN\u2019s", 0.14: "paper: 14 % of CLIP\u2019s"}
"""Shares of the data with which VeCLIP is said to be ahead of another model on all of its own."""
CLAIM_NOTE = (
    "the dotted lines are the paper\u2019s at full scale, not ours (arXiv 2310.07699, abstract: +3 % with 14 % of the data of"
    " vanilla CLIP and 11 % of ALIGN\u2019s)"
)

Rows = Mapping[tuple[str, str], Mapping[str, Any]]
"""Summary rows over all queries by (model, metric)."""


class NoFigureFile(Mendable, ValueError):
    """A figure can't be written so; the message says how it can."""


@dataclass(frozen=True)
class SweepFigure:
    """A figure before it has a format."""

    title: str
    note: str
    description: str
    """Every value, for those who can't see it."""
    figure: "Figure"

    def chart(self) -> Chart:
        """For a page."""
        return Chart(self.title, self.note, as_svg(self.figure, self.description))

    def save(self, path: Path) -> Path:
        """Write it on white, as SVG or PNG by the path's ending. The figure is of no use for a page any more.

        Raises NoFigureFile for another ending.
        """
        import matplotlib

        require_format(path)
        _recolour(self.figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {"Software": None}
        with matplotlib.rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": self.description, "text.parse_math": False}
        ):
            self.figure.savefig(path, facecolor="white", dpi=DOTS_PER_INCH, metadata=metadata)
        return path


def require_format(path: Path) -> None:
    """Raises NoFigureFile."""
    if path.suffix.lower() not in FORMATS:
        raise NoFigureFile(f"{path} is neither SVG nor PNG: name a file that ends in {' or '.join(FORMATS)}")


def figure_of(results: Mapping[str, Any], sweep: "Sweep") -> SweepFigure:
    """The figure of a sweep from what `compare` returns, of the first set; models that were not trained are left out."""
    draw = {"mix": _mix, "sources": _sources, "data": _data}[sweep.name]
    return draw(results, sweep)


def mix_chart(results: Mapping[str, Any], sweep: "Sweep") -> Chart:
    return _mix(results, sweep).chart()


def sources_chart(results: Mapping[str, Any], sweep: "Sweep") -> Chart:
    return _sources(results, sweep).chart()


def data_chart(results: Mapping[str, Any], sweep: "Sweep") -> Chart:
    return _data(results, sweep).chart()


def _mix(results: Mapping[str, Any], sweep: "Sweep") -> SweepFigure:
    """x: the share of VeCaps among the texts that are drawn."""
    figure, panels, rows = _begun(results, sweep)
    arms = _there(sweep, rows)
    for axes, metric in zip(panels, sweep.comparison.metrics, strict=True):
        _line(axes, rows, [(sweep.axis[arm], arm) for arm in arms], metric, MODELS[1])
        axes.set_xticks([sweep.axis[arm] for arm in arms], [f"{sweep.axis[arm]:.0%}" for arm in arms])
    panels[-1].set_xlabel(sweep.xlabel)
    return _finished(sweep, results, figure, panels, rows)


def _sources(results: Mapping[str, Any], sweep: "Sweep") -> SweepFigure:
    """x: the caption sources, in no measure's order, and therefore without lines between them."""
    figure, panels, rows = _begun(results, sweep)
    arms = _there(sweep, rows)
    for axes, metric in zip(panels, sweep.comparison.metrics, strict=True):
        for number, arm in enumerate(arms):
            _line(axes, rows, [(number, arm)], metric, MODELS[number % len(MODELS)])
        axes.set_xticks(range(len(arms)), [words.MODEL_NAMES.get(arm, arm) for arm in arms])
        axes.set_xlim(-0.5, len(arms) - 0.5)
    return _finished(sweep, results, figure, panels, rows)


def _data(results: Mapping[str, Any], sweep: "Sweep") -> SweepFigure:
    """x: the share of the rows, on a log axis; a line for AltText alone and one for the mix, and where the paper's claims stand."""
    figure, panels, rows = _begun(results, sweep)
    arms = _there(sweep, rows)
    shares = sorted({sweep.axis[arm] for arm in arms})
    for axes, metric in zip(panels, sweep.comparison.metrics, strict=True):
        axes.set_xscale("log")
        for number, (name, of_line) in enumerate(sweep.lines.items()):
            # Side by side, or the intervals at one share would hide each other.
            points = sorted((sweep.axis[arm] * APART**number, arm) for arm in of_line if arm in arms)
            _line(axes, rows, points, metric, MODELS[number], name)
        for share, claim in CLAIMS.items():
            axes.axvline(share, color=MODELS[2], linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                claim, (share, 0.5), xycoords=("data", "axes fraction"), xytext=(2, 0), textcoords="offset points",
                rotation=90, va="center", color=MUTED, fontsize=6.5,
            )  # fmt: skip
        axes.minorticks_off()
        axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axes.set_xlim(0.095, 1.12)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    panels[-1].set_xlabel(f"{sweep.xlabel}, logarithmic; equal steps, so equal compute")
    return _finished(sweep, results, figure, panels, rows, f"; {CLAIM_NOTE}")


def _begun(results: Mapping[str, Any], sweep: "Sweep") -> "tuple[Figure, list[Axes], Rows]":
    """Empty panels with titles, and the rows."""
    name = next(iter(results["sets"]))
    rows = {
        (row["model"], row["metric"]): row for row in results["summary"] if row["set"] == name and row["split"] == "all"
    }
    metrics = sweep.comparison.metrics
    figure, panels = panels_of(0.4 + PANEL_INCHES * len(metrics), len(metrics), 1)
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_title(_title(metric, rows), loc="left", fontsize=9.5, color=INK, pad=11)
        axes.set_ylabel("percent")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
    return figure, panels, rows


def _finished(
    sweep: "Sweep", results: Mapping[str, Any], figure: "Figure", panels: "Sequence[Axes]", rows: Rows, note: str = ""
) -> SweepFigure:
    arms, metrics = _there(sweep, rows), sweep.comparison.metrics
    for axes, metric in zip(panels, metrics, strict=True):
        _chance(axes, rows[arms[0], metric]["chance"])
    return SweepFigure(sweep.title, _note(results) + note, f"{sweep.title}. {_told(rows, arms, metrics)}", figure)


def _there(sweep: "Sweep", rows: Rows) -> list[str]:
    return [arm for arm in sweep.axis if (arm, sweep.comparison.metrics[0]) in rows]


def _title(metric: str, rows: Rows) -> str:
    chance = next((row["chance"] for (_, of), row in rows.items() if of == metric), float("nan"))
    better = "lower" if metric.endswith("mean_rank") else "higher"
    return f"{words.metric_name(metric)} ({better} is better; chance {words.number(chance)})"


def _line(
    axes: "Axes", rows: Rows, points: Sequence[tuple[float, str]], metric: str, colour: str, name: str | None = None
) -> None:
    """Values with intervals, joined."""
    if not points:
        return
    found = [rows[arm, metric] for _, arm in points]
    x = [place for place, _ in points]
    axes.plot(x, [row["value"] for row in found], "-o", color=colour, linewidth=1.5, markersize=5, label=name)
    for place, row in zip(x, found, strict=True):
        axes.plot([place, place], [row["low"], row["high"]], color=colour, linewidth=1.4, solid_capstyle="round")


def _chance(axes: "Axes", chance: float) -> None:
    """A dashed line, unless it is so far from all values that their differences would not be seen."""
    low, high = axes.get_ylim()
    if low - CHANCE_WITHIN * (high - low) <= chance <= high + CHANCE_WITHIN * (high - low):
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))


def _note(results: Mapping[str, Any]) -> str:
    seeds, confidence = len(results["seeds"]), results["config"]["confidence"]
    over = f"pictures and {seeds} seeds" if seeds > 1 else "pictures, of one seed"
    return f"{100 * confidence:g}\u00a0% intervals over {over}; chance is dashed where it is near"


def _told(rows: Rows, arms: Sequence[str], metrics: Sequence[str]) -> str:
    return "; ".join(
        f"{words.metric_name(metric)}: "
        + ", ".join(
            f"{words.MODEL_NAMES.get(arm, arm)} {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            for arm in arms
            for row in (rows[arm, metric],)
        )
        + f", chance {rows[arms[0], metric]['chance']:.2f}"
        for metric in metrics
    )


def _recolour(figure: "Figure") -> None:
    """The page's variables to colours."""
    from matplotlib.colors import is_color_like, to_hex

    for artist in figure.findobj():
        for of in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = getattr(artist, f"get_{of}", None), getattr(artist, f"set_{of}", None)
            if get is None or put is None:
                continue
            now = get()
            if is_color_like(now) and (to := ON_WHITE.get(to_hex(now))):
                put(to)
