"""`report.html`: one page without any outside resource, made from results and examples.

Captions come from strangers. Jinja escapes every text, control and direction-changing characters are made harmless, and the
page forbids scripts and outside resources by its own content security policy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veclip_core.evaluation.report import figures, words
from veclip_core.evaluation.report.gain_figure import gain_chart
from veclip_core.evaluation.report.inputs import (
    CaptionExample,
    Captions,
    Chart,
    Contamination,
    DataCard,
    HowTo,
    LossCurve,
)
from veclip_core.evaluation.report.models_words import note_name
from veclip_core.evaluation.report.rendering import HERE, environment, thumbnail, written
from veclip_core.evaluation.report.retrieved import RetrievalExamples
from veclip_core.evaluation.report.shown_examples import directions

CAPTION_PIXELS, ROW_PIXELS = 240, 96
LARGEST_PAGE = 3_000_000
SHOWN_METRICS = ("mean_recall", "mean_rank", "i2t_r@10", "t2i_r@10")


def write_report(
    results: Mapping[str, Any],
    out: Path,
    *,
    curves: Sequence[LossCurve],
    captions: Captions,
    data_card: DataCard,
    captioner_accuracy: Mapping[str, float | str],
    howto: HowTo,
    retrieval_examples: RetrievalExamples | None = None,
    scale: str = "sample",
    labels: Mapping[str, str] | None = None,
    charts: Sequence[Chart] = (),
    contamination: Sequence[Contamination] = (),
) -> Path:
    """Write the page to `out` (a folder gets `report.html`) and return its path.

    `results` is what `compare` returns. `captioner_accuracy`: measured on what -> a fraction, or words. `labels`: model -> its
    name on the page. `charts`: further figures for the first section. Deterministic: equal arguments give equal bytes."""
    page = render(
        results,
        curves=curves,
        captions=captions,
        data_card=data_card,
        captioner_accuracy=captioner_accuracy,
        howto=howto,
        retrieval_examples=retrieval_examples,
        scale=scale,
        charts=charts,
        contamination=contamination,
        labels={model: words.MODEL_NAMES.get(model, model) for model in results["models"]} | dict(labels or {}),
    )
    return written(page, out, LARGEST_PAGE)


def render(
    results: Mapping[str, Any],
    *,
    retrieval_examples: RetrievalExamples | None,
    curves: Sequence[LossCurve],
    labels: Mapping[str, str],
    captions: Captions,
    charts: Sequence[Chart],
    **context: Any,
) -> str:
    """The page as text."""
    base = results["baseline"]
    models = sorted(results["models"], key=lambda model: model != base)
    contrasts = [(model, other) for model, other in results["headline"]["contrasts"]]
    compared = [model for model in models if any(model in pair for pair in contrasts)] or models
    name = next(iter(results["sets"]))
    rows = {(r["model"], r["split"], r["metric"]): r for r in results["summary"] if r["set"] == name}
    differences = {
        (r["model"], r["baseline"], r["split"], r["metric"]): r for r in results["differences"] if r["set"] == name
    }
    classes = list(results["sets"][name]["classes"])
    answer, sentences = words.answer(results, labels, name)
    return environment().get_template("template.html").render(
        question=words.QUESTION,
        answer=answer,
        sentences=sentences,
        results=results,
        set_name=name,
        evaluation_set=results["sets"][name],
        models=models,
        compared=compared,
        contrasts=contrasts,
        further=[model for model in models if model not in compared],
        base=base,
        notes={labels[model]: words.MODEL_NOTES[model] for model in models if model in words.MODEL_NOTES},
        same=words.SAME,
        labels=labels,
        rows=rows,
        differences=differences,
        metrics=list(dict.fromkeys(metric for _, _, metric in rows)),
        shown_metrics=[*SHOWN_METRICS, *(f"zeroshot_top1_{label}" for label in classes)],
        split_names={split: text for split, text in words.SPLIT_NAMES.items() if split in results["sets"][name]["splits"]},
        charts=[*_charts(rows, models, labels, classes), *charts],
        set_notes={note_name(note): count for note, count in results["sets"][name].get("notes", {}).items() if count},
        gain=gain_chart(),
        loss_chart=figures.loss_figure(curves, models) if curves else None,
        retrieval=directions(retrieval_examples, labels) if retrieval_examples else None,
        captions=captions,
        random_rows=with_thumbnails(captions.random, ROW_PIXELS),
        control_rows=with_thumbnails(captions.control_rows, ROW_PIXELS),
        refused={reason: with_thumbnails(found, CAPTION_PIXELS) for reason, found in captions.by_reason.items()},
        css=(HERE / "style.css").read_text(),
        verdict=words.verdict,
        why_open=words.why_open,
        **context,
    )  # fmt: skip


def with_thumbnails(found: Sequence[CaptionExample], pixels: int) -> list[tuple[CaptionExample, str]]:
    return [(example, thumbnail(example.picture, pixels)) for example in found]


def _charts(
    rows: figures.Rows, models: Sequence[str], labels: Mapping[str, str], classes: Sequence[str]
) -> list[Chart]:
    recall = {way: {f"{way}_r@{k}": f"R@{k}" for k in (1, 5, 10)} for way in ("i2t", "t2i")}
    zeroshot = {
        metric: f"{label}\ntop-{k}"
        for label in reversed(classes)
        for k in (1, 5)
        if (models[0], "all", metric := f"zeroshot_top{k}_{label}") in rows
    }
    charts = [
        Chart(
            "Mean recall",
            "higher is better",
            figures.headline_figure(rows, models, labels, "mean_recall", "Mean recall"),
        ),
        Chart("Mean rank", "lower is better", figures.headline_figure(rows, models, labels, "mean_rank", "Mean rank")),
        Chart(
            "Image to text",
            "recall, higher is better",
            figures.bars_figure(rows, models, labels, recall["i2t"], "Image to text"),
        ),
        Chart(
            "Text to image",
            "recall, higher is better",
            figures.bars_figure(rows, models, labels, recall["t2i"], "Text to image"),
        ),
    ]
    if classes:
        chart = figures.bars_figure(rows, models, labels, zeroshot, "Zero-shot classification")
        charts.append(Chart("Zero-shot classification", "accuracy, higher is better", chart))
    return charts
