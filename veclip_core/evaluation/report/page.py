"""`report.html`: one page without any outside resource, made from results and examples.

Captions come from strangers. Jinja escapes every text, control and direction-changing characters are made harmless, and the
page forbids scripts and outside resources by its own content security policy.
"""

import base64
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core.evaluation.report import figures, words
from veclip_core.evaluation.report.inputs import CaptionExample, Captions, Chart, DataCard, HowTo, LossCurve, Picture
from veclip_core.evaluation.report.retrieved import RetrievalExample, RetrievalExamples

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
CAPTION_PIXELS, GALLERY_PIXELS, ROW_PIXELS = 240, 112, 96
LONGEST_TEXT = 320
LARGEST_PAGE = 3_000_000
SHOWN_METRICS = ("mean_recall", "mean_rank", "i2t_r@10", "t2i_r@10")
OUTCOME_NAMES = {
    "both": "found by both",
    "only_ours": "found by {ours}, not by {baseline}",
    "only_baseline": "found by {baseline}, not by {ours}",
    "neither": "found by neither",
}


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
) -> Path:
    """Write the page to `out` (a folder gets `report.html`) and return its path.

    `results` is what `compare` returns. `captioner_accuracy`: measured on what -> a fraction, or words. `labels`: model -> its
    name on the page. `charts`: further figures for the first section. Deterministic: equal arguments give equal bytes."""
    out = out / "report.html" if out.is_dir() else out
    page = render(
        results,
        curves=curves,
        captions=captions,
        data_card=data_card,
        captioner_accuracy=captioner_accuracy,
        howto=howto,
        retrieval_examples=retrieval_examples,
        scale=scale,
        labels={model: words.MODEL_NAMES.get(model, model) for model in results["models"]} | dict(labels or {}),
        charts=charts,
    ).encode()
    if len(page) > LARGEST_PAGE:
        logger.warning("the report has %.1f MB: give fewer examples to keep it easy to send", len(page) / 1e6)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(page)
    return out


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
        charts=[*_charts(rows, models, labels, classes), *((one.title, one.note, one.svg) for one in charts)],
        loss_chart=figures.loss_figure(curves, models) if curves else None,
        retrieval=_retrieval(retrieval_examples, labels) if retrieval_examples else None,
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


def clean(text: str | None, longest: int = LONGEST_TEXT) -> str:
    """Text of a stranger, fit to be shown: control and direction-changing characters as a visible sign, cut where very long."""
    text = text or ""
    shown = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text[:longest]
    )
    return shown if len(text) <= longest else f"{shown}… ({len(text):,} characters)"


def thumbnail(picture: Picture, pixels: int) -> str:
    """A data URI of the picture, at most `pixels` on its longer side, on white."""
    from PIL import Image

    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        return _data_uri(opened.convert("RGBA"), pixels)


def _data_uri(picture: "Image", pixels: int) -> str:
    from PIL import Image

    small = picture.convert("RGBA")
    small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    on_white = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    encoded = io.BytesIO()
    on_white.save(encoded, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()


def environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "clean": clean,
        "number": words.number,
        "signed": words.signed,
        "metric": words.metric_name,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "count": lambda value: f"{value:,}",
    }
    return environment


def _charts(
    rows: figures.Rows, models: Sequence[str], labels: Mapping[str, str], classes: Sequence[str]
) -> list[tuple[str, str, str]]:
    """(title, note, svg) of each chart."""
    recall = {way: {f"{way}_r@{k}": f"R@{k}" for k in (1, 5, 10)} for way in ("i2t", "t2i")}
    zeroshot = {
        metric: f"{label}\ntop-{k}"
        for label in reversed(classes)
        for k in (1, 5)
        if (models[0], "all", metric := f"zeroshot_top{k}_{label}") in rows
    }
    charts = [
        (
            "Mean recall",
            "higher is better",
            figures.headline_figure(rows, models, labels, "mean_recall", "Mean recall"),
        ),
        ("Mean rank", "lower is better", figures.headline_figure(rows, models, labels, "mean_rank", "Mean rank")),
        (
            "Image to text",
            "recall, higher is better",
            figures.bars_figure(rows, models, labels, recall["i2t"], "Image to text"),
        ),
        (
            "Text to image",
            "recall, higher is better",
            figures.bars_figure(rows, models, labels, recall["t2i"], "Text to image"),
        ),
    ]
    if classes:
        chart = figures.bars_figure(rows, models, labels, zeroshot, "Zero-shot classification")
        charts.append(("Zero-shot classification", "accuracy, higher is better", chart))
    return charts


def _retrieval(found: RetrievalExamples, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """By direction: a heading, counts, and the examples with their pictures."""
    names = {"ours": labels.get(found.ours, found.ours), "baseline": labels.get(found.baseline, found.baseline)}
    pictures: dict[int, str] = {}

    def picture(row: int) -> str:
        if row not in pictures:
            pictures[row] = _data_uri(found.evaluation_set.open_picture(row), GALLERY_PIXELS)
        return pictures[row]

    def shown(example: RetrievalExample) -> dict[str, Any]:
        captions, by_text = found.evaluation_set.captions, example.direction == "t2i"
        return {
            "outcome": OUTCOME_NAMES[example.outcome].format(**names),
            "text": captions[example.query] if by_text else " / ".join(found.evaluation_set.captions_of[example.query]),
            "picture": None if by_text else picture(example.query),
            "answers": [
                {
                    "model": labels.get(answer.model, answer.model),
                    "rank": f"{answer.rank:,.0f}",
                    "first": [
                        {
                            "picture": picture(row) if by_text else None,
                            "text": captions[row] if not by_text else "",
                            "right": right,
                        }
                        for row, right in zip(answer.rows, answer.right, strict=True)
                    ],
                }
                for answer in example.answers
            ],
        }

    titles = {"t2i": "Text to image", "i2t": "Image to text"}
    return [
        {
            "title": titles[direction],
            "gallery": len(found.evaluation_set) if direction == "t2i" else len(found.evaluation_set.captions),
            "hit_within": found.hit_within,
            "seed": found.seed,
            "counts": {OUTCOME_NAMES[outcome].format(**names): n for outcome, n in counts.items()},
            "examples": [shown(example) for example in found.examples if example.direction == direction],
        }
        for direction, counts in found.counts.items()
    ]
