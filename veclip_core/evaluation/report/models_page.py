"""One self-contained page for any models on any evaluation sets, made from what `compare` returns.

Names of models and sets, class names and captions may be strangers' words: as in page.py, Jinja escapes them, what would change
the direction of text is taken out, and the page forbids scripts and outside resources by its own content security policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veclip_core.evaluation.paper import COLUMNS, MISPRINTS, ROWS, SOURCE, PaperVerdict
from veclip_core.evaluation.report import models_figures, models_words, words
from veclip_core.evaluation.report.gain_figure import metrics_of_columns
from veclip_core.evaluation.report.inputs import Chart, Contamination, HowTo
from veclip_core.evaluation.report.models_words import column_name, kind_of
from veclip_core.evaluation.report.rendering import HERE, clean, environment, written
from veclip_core.evaluation.report.retrieved import RetrievalExamples
from veclip_core.evaluation.report.shown_examples import directions

LARGEST_PAGE = 6_000_000
LONGEST_NAME = 60
MANY_MODELS, MANY_COLUMNS = 4, 8
"""More models than this are compared along a column, on a phone too; more columns don't fit on paper beside each other."""
TABLES = {
    "recall": "Retrieval",
    "ranks": "Ranks of the right match",
    "classification": "Zero-shot classification",
}


@dataclass(frozen=True)
class Table:
    """Models by metrics, on one set."""

    title: str
    metrics: Sequence[str]
    columns: Mapping[str, str]
    """Metric to the head of its column."""


@dataclass(frozen=True)
class SetView:
    """One evaluation set as the page shows it."""

    name: str
    told: Mapping[str, Any]
    """Its entry in the results."""
    notes: Mapping[str, int]
    models: Sequence[str]
    rows: Mapping[tuple[str, str, str], Mapping[str, Any]]
    """By (model, split, metric)."""
    differences: Mapping[tuple[str, str, str, str], Mapping[str, Any]]
    """By (model, baseline, split, metric)."""
    pairs: Sequence[tuple[str, str]]
    """Model and the one it is compared with."""
    tables: Sequence[Table]
    charts: Sequence[Chart]
    main: str
    """The metric it is first read by."""


def write_models_page(
    results: Mapping[str, Any],
    out: Path,
    *,
    title: str,
    howto: HowTo,
    charts: Sequence[Chart] = (),
    examples: Sequence[RetrievalExamples] = (),
    contamination: Sequence[Contamination] = (),
    verdicts: Sequence[PaperVerdict] = (),
    labels: Mapping[str, str] | None = None,
) -> Path:
    """Write the page to `out` (a folder gets `report.html`) and return its path. Deterministic: equal arguments, equal bytes.

    Args:
        results: what `compare` returns, or several of them as one (`merge_results`).
        title: the page's question or subject.
        charts: further figures, shown after those of the sets.
        examples: hits and misses, of as many sets as are to be shown.
        verdicts: how measured scores stand beside the published ones.
        labels: model to its name on the page; its own name by default.
    """
    page = render(
        results, title=title, howto=howto, charts=charts, examples=examples, contamination=contamination, verdicts=verdicts,
        labels={model: clean((labels or {}).get(model, model), LONGEST_NAME) for model in results["models"]},
    )  # fmt: skip
    return written(page, out, LARGEST_PAGE)


def render(
    results: Mapping[str, Any],
    *,
    labels: Mapping[str, str],
    examples: Sequence[RetrievalExamples],
    contamination: Sequence[Contamination],
    verdicts: Sequence[PaperVerdict],
    **context: Any,
) -> str:
    """The page as text."""
    base = results.get("baseline")
    views = [_view(results, name, labels) for name in results["sets"]]
    answer, sentences, claims = models_words.answer(results, labels)
    return environment().get_template("models.html").render(
        answer=answer,
        sentences=sentences,
        claims=claims,
        results=results,
        base=base,
        labels=labels,
        models=sorted(results["models"], key=lambda model: model != base),
        views=[view for view in views if view.models],
        standings={one.set: one for one in models_words.standings(results)},
        contamination=contamination,
        unlooked=[name for name in results["sets"] if name not in {one.set for one in contamination}],
        paper=_paper(results, labels),
        verdicts=verdicts,
        columns=COLUMNS,
        examples=[(found, shown) for found in examples if (shown := directions(found, labels))],
        many_models=MANY_MODELS,
        many_columns=MANY_COLUMNS,
        css=(HERE / "style.css").read_text(),
        verdict=words.verdict,
        note_name=models_words.note_name,
        **context,
    )  # fmt: skip


def _view(results: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> SetView:
    base = results.get("baseline")
    rows = {(r["model"], r["split"], r["metric"]): r for r in results["summary"] if r["set"] == name}
    differences = {
        (r["model"], r["baseline"], r["split"], r["metric"]): r for r in results["differences"] if r["set"] == name
    }
    models = [model for model in results["models"] if any(of == model for of, _, _ in rows)]
    models.sort(key=lambda model: model != base)
    metrics = list(dict.fromkeys(metric for _, _, metric in rows))
    told = results["sets"][name]
    tables = [_table(kind, metrics, len(told["classes"])) for kind in TABLES]
    return SetView(
        name=name,
        told=told,
        notes={models_words.note_name(note): count for note, count in told.get("notes", {}).items() if count},
        models=models,
        rows=rows,
        differences=differences,
        pairs=list(dict.fromkeys((model, other) for model, other, _, _ in differences)),
        tables=[table for table in tables if table.metrics],
        charts=_charts(rows, models, labels, metrics, list(told["classes"]), base) if models else [],
        main=models_words.main_metric(metrics) if metrics else "",
    )


def _table(kind: str, metrics: Sequence[str], labellings: int) -> Table:
    """Metrics that only spell out another (the mean rank of one direction) are left to `results.json`."""
    shown = [
        metric for metric in metrics if kind_of(metric) == kind and metric not in ("i2t_mean_rank", "t2i_mean_rank")
    ]
    return Table(TABLES[kind], shown, {metric: clean(column_name(metric, labellings), 40) for metric in shown})


def _charts(
    rows: Mapping[tuple[str, str, str], Mapping[str, Any]],
    models: Sequence[str],
    labels: Mapping[str, str],
    metrics: Sequence[str],
    classes: Sequence[str],
    base: str | None,
) -> list[Chart]:
    found = []
    for way, title in (("i2t", "Image to text"), ("t2i", "Text to image")):
        levels = {f"{way}_r@{k}": f"R@{k}" for k in (1, 5, 10) if f"{way}_r@{k}" in metrics}
        if levels:
            svg = models_figures.nested_figure(rows, models, labels, levels, title, base)
            found.append(Chart(title, f"{' within '.join(levels.values())}, with intervals", svg))
    medians = {f"{way}_median_rank": name for way, name in (("i2t", "image to text"), ("t2i", "text to image"))}
    if all(metric in metrics for metric in medians):
        svg = models_figures.ranks_figure(rows, models, labels, medians, "Median rank")
        found.append(Chart("Median rank", "lower is better", svg))
    if "selection_accuracy" in metrics:
        svg = models_figures.nested_figure(
            rows, models, labels, {"selection_accuracy": "right caption"}, "Right caption chosen", base
        )
        found.append(Chart("Right caption chosen", "higher is better", svg))
    for label in classes:
        levels = {f"zeroshot_top{k}_{label}": f"top-{k}" for k in (1, 5) if f"zeroshot_top{k}_{label}" in metrics}
        if levels:
            name = f"Zero-shot by {clean(label, 40)}" if len(classes) > 1 else "Zero-shot classification"
            svg = models_figures.nested_figure(rows, models, labels, levels, name, base)
            found.append(Chart(name, f"{' within '.join(levels.values())}, with intervals", svg))
    return found


def _paper(results: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any] | None:
    """The paper's rows, and one's own in the same columns; None where no set is in its table."""
    metrics = metrics_of_columns(results)
    if not metrics:
        return None
    summary = {(r["model"], r["set"], r["metric"]): r for r in results["summary"] if r["split"] == "all"}
    own = []
    for model in results["models"]:
        cells = {
            column: row for (name, column), metric in metrics.items() if (row := summary.get((model, name, metric)))
        }
        if cells:
            own.append({"model": labels[model], "cells": cells})
    used = [column for column in COLUMNS if any(column == of for _, of in metrics)]
    return {"columns": {column: COLUMNS[column] for column in used}, "rows": ROWS, "misprints": MISPRINTS,
            "source": SOURCE, "own": own}  # fmt: skip
