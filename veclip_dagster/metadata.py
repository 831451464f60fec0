"""Reports as Dagster metadata. The numbers are those that MLflow gets: both come from the report's own `metrics()`."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import dagster as dg

from veclip_core import storage
from veclip_core.pipeline.data_card import card_address
from veclip_core.stage_report import StageReport


def of_stage(report: StageReport) -> dict[str, dg.MetadataValue]:
    """A stage's numbers, its place, and its errors as a table and a plot."""
    metadata: dict[str, dg.MetadataValue] = {name: number(value) for name, value in report.metrics().items()}
    metadata[f"{report.stage}/identity"] = dg.MetadataValue.text(report.identity)
    metadata[f"{report.stage}/uri"] = dg.MetadataValue.text(report.uri)
    metadata[f"{report.stage}/partial"] = dg.MetadataValue.bool(report.partial)
    if report.errors:
        metadata[f"{report.stage}/errors"] = counts_table(report.errors, "reason")
        metadata[f"{report.stage}/errors_plot"] = bars(report.errors, f"{report.stage}: rows by error")
    return metadata


def of_manifest(report: StageReport, uri: str) -> dict[str, dg.MetadataValue]:
    """A manifest's numbers, its JSON, and its data card to read."""
    card = storage.read_bytes(card_address(uri)).decode()
    return {**of_stage(report), "manifest": dg.MetadataValue.text(uri), "data_card": dg.MetadataValue.md(card)}


def number(value: float) -> dg.MetadataValue:
    return dg.MetadataValue.int(int(value)) if float(value).is_integer() else dg.MetadataValue.float(round(value, 6))


def counts_table(counts: Mapping[str, int], what: str) -> dg.MetadataValue:
    return dg.MetadataValue.table([dg.TableRecord({what: name, "rows": int(count)}) for name, count in counts.items()])


def bars(counts: Mapping[str, float], title: str) -> dg.MetadataValue:
    """A horizontal bar chart, inline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.6 + 0.3 * len(counts)), layout="constrained")
    axes = figure.subplots()
    names = list(counts)[::-1]
    drawn = axes.barh(names, [counts[name] for name in names], color="#4c6ef5")
    axes.bar_label(drawn, padding=3)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


def curve(points: Mapping[str, list[tuple[float, float]]], title: str, y: str, x: str = "step") -> dg.MetadataValue:
    """A line chart, inline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, line in points.items():
        axes.plot([step for step, _ in line], [value for _, value in line], label=name)
    axes.set_xlabel(x)
    axes.legend(frameon=False, fontsize=8)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


def panels(lines: Mapping[str, list[tuple[float, float]]], x: str = "step") -> dg.MetadataValue:
    """Line charts below each other over one axis, inline: each with a scale of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.5 + 1.2 * len(lines)), layout="constrained")
    all_axes = figure.subplots(len(lines), sharex=True, squeeze=False)[:, 0]
    for axes, (name, line) in zip(all_axes, lines.items(), strict=True):
        axes.plot([step for step, _ in line], [value for _, value in line], color="#4c6ef5")
        axes.set_title(name, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel(x)
    return _picture(figure)


def _picture(figure: Any) -> dg.MetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return png(buffer.getvalue())


def png(data: bytes) -> dg.MetadataValue:
    """A picture, inline."""
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(data).decode()})")
