"""Several evaluations beside each other: the content of `results.json`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.config import digest_of
from veclip_core.evaluation.metrics import better, chance, headline_of, queries
from veclip_core.evaluation.paper import reference
from veclip_core.evaluation.statistics import Drawn, Interval, interval, spread

if TYPE_CHECKING:
    from veclip_core.evaluation.evaluate import Evaluation, EvaluationConfig


def compare(
    evaluations: "Sequence[Evaluation]",
    *,
    baseline: str | None = "clip",
    headline: Sequence[tuple[str, str]] | None = None,
    headline_metrics: Sequence[str] | None = None,
    headline_splits: Sequence[str] = ("all",),
) -> dict[str, Any]:
    """The results of several models, seeds and sets as plain data.

    `scores`: a row per model and seed, intervals over queries. `summary`: a row per model over its seeds, intervals over
    queries and seeds. `differences`: each other model minus the baseline, and the pairs of the headline, paired by query and
    seed, with the direction that is better and whether the interval resolves it; none where the baseline is not among the models.
    `comparisons`: how many of these there are. A set that some of the models were not evaluated on has the rows of the others.

    Args:
        headline: the pairs (model, baseline) that were to be compared before anything was run; the first other model and the
            baseline by default.
        headline_metrics: by what, by default what each set is for (`metrics.headline_of`); `headline_splits`: where they were to
            be compared.

    Raises:
        ValueError: where evaluations cannot be compared.
    """
    if not evaluations:
        raise ValueError("nothing to compare: no evaluation was given")
    if len({evaluation.config for evaluation in evaluations}) > 1:
        raise ValueError("these evaluations have different configurations: evaluate all models with the same one")
    config = evaluations[0].config
    models = list(dict.fromkeys(evaluation.model for evaluation in evaluations))
    results: dict[str, Any] = {
        "unit": "percent",
        "baseline": baseline if baseline in models else None,
        "models": models,
        "seeds": sorted({evaluation.seed for evaluation in evaluations}),
        "sets": {},
        "scores": [row for evaluation in evaluations for row in evaluation.scores],
        "summary": [],
        "differences": [],
    }
    against = (
        [] if baseline is None or baseline not in models else [(one, baseline) for one in models if one != baseline]
    )
    headline = against[:1] if headline is None else headline
    by_metric = [] if headline_metrics is None else list(headline_metrics)
    for name in dict.fromkeys(evaluation.evaluation_set.name for evaluation in evaluations):
        group = [evaluation for evaluation in evaluations if evaluation.evaluation_set.name == name]
        results["sets"][name] = _describe(group)
        if headline_metrics is None:
            by_metric += headline_of(group[0].evaluation_set)
        runs = {model: _by_seed([e for e in group if e.model == model]) for model in models}
        runs = {model: by_seed for model, by_seed in runs.items() if by_seed}
        for by_seed in runs.values():
            results["summary"] += score_rows(list(by_seed.values()), seeds=sorted(by_seed))
        for model, base in dict.fromkeys([*headline, *against]):
            if model in runs and base in runs:
                results["differences"] += _differences(runs[model], runs[base])
    by_metric = list(dict.fromkeys(by_metric))
    splits = [
        split for split in headline_splits if all(split in of_set["splits"] for of_set in results["sets"].values())
    ]
    chosen = [
        row
        for row in results["differences"]
        if row["metric"] in by_metric and row["split"] in splits and (row["model"], row["baseline"]) in list(headline)
    ]
    return results | {
        "headline": {
            "contrasts": [list(pair) for pair in headline],
            "metrics": by_metric,
            "splits": splits,
        },
        "comparisons": {
            "made": len(results["differences"]),
            "resolved": sum(row["resolved"] for row in results["differences"]),
            "headline": len(chosen),
            "headline_resolved": sum(row["resolved"] for row in chosen),
        },
        "config": config.model_dump(mode="json"),
        "identity": digest_of(sorted(evaluation.identity for evaluation in evaluations))[:32],
        "method": _method(config),
        "paper": reference(),
    }


def _by_seed(evaluations: "Sequence[Evaluation]") -> "dict[int, Evaluation]":
    by_seed = {evaluation.seed: evaluation for evaluation in evaluations}
    if len(by_seed) < len(evaluations):
        raise ValueError(f"{evaluations[0].model} was given twice with the same seed")
    return dict(sorted(by_seed.items()))


def _describe(group: "Sequence[Evaluation]") -> dict[str, Any]:
    evaluation_set = group[0].evaluation_set
    if {evaluation.evaluation_set.content for evaluation in group} != {evaluation_set.content}:
        raise ValueError(f"these evaluations saw different contents of the set {evaluation_set.name}")
    captions_N = np.bincount(evaluation_set.caption_picture_M, minlength=len(evaluation_set))
    unreadable = max(evaluation.unreadable for evaluation in group)
    return {
        "pictures": len(evaluation_set),
        "captions": len(evaluation_set.captions),
        "captions_per_picture": [int(captions_N.min()), int(captions_N.max())],
        "splits": {split: int(mask.sum()) for split, mask in evaluation_set.splits.items()},
        "classes": {label: len(labelling.classes) for label, labelling in evaluation_set.labels.items()},
        "templates": {
            label: list(labelling.templates_or(group[0].config.templates))
            for label, labelling in evaluation_set.labels.items()
        },
        "content": evaluation_set.content,
        "notes": {**evaluation_set.notes, "unreadable": unreadable},
    }


def score_rows(runs: "Sequence[Evaluation]", **columns: Any) -> list[dict[str, Any]]:
    """Score rows of one model over the given runs (one per seed)."""
    first = runs[0]
    return [
        {"model": first.model, **_of_cell(first, split, metric, columns, [run.drawn[split, metric] for run in runs])}
        for split, metric in first.drawn
    ]


def _differences(runs: "dict[int, Evaluation]", base: "dict[int, Evaluation]") -> list[dict[str, Any]]:
    seeds = sorted(runs.keys() & base.keys())
    first = next(iter(runs.values()))
    if not seeds:
        raise ValueError(
            f"{first.model} (seeds {sorted(runs)}) shares no seed with the baseline (seeds {sorted(base)})"
        )
    baseline = base[seeds[0]].model
    rows = []
    for split, metric in first.drawn:
        ours, theirs = ([side[seed].drawn[split, metric] for seed in seeds] for side in (runs, base))
        row = _of_cell(first, split, metric, {"seeds": seeds}, ours, theirs)
        resolved = row["low"] > 0 or row["high"] < 0
        ahead = first.model if (row["value"] > 0) == (better(metric) == "higher") else baseline
        by_seed = [
            {"seed": seed, **vars(_interval(first, [a], [b]))} for seed, a, b in zip(seeds, ours, theirs, strict=True)
        ]
        parts = spread(ours, theirs, confidence=first.config.confidence)
        rows.append(
            {"model": first.model, "baseline": baseline, **row, "better": better(metric), "resolved": resolved}
            | {"favours": ahead if resolved else None, "by_seed": by_seed, "spread": asdict(parts) if parts else None}
        )
    return rows


def _of_cell(
    run: "Evaluation",
    split: str,
    metric: str,
    columns: dict[str, Any],
    by_seed: Sequence[Drawn],
    minus: Sequence[Drawn] | None = None,
) -> dict[str, Any]:
    """The columns that scores and differences share."""
    evaluation_set = run.evaluation_set
    cell = {"set": evaluation_set.name, "split": split, "metric": metric, **vars(_interval(run, by_seed, minus))}
    return cell | {
        "n": queries(evaluation_set, split, metric),
        **columns,
        "chance": chance(evaluation_set, split)[metric],
    }


def _interval(run: "Evaluation", by_seed: Sequence[Drawn], minus: Sequence[Drawn] | None = None) -> Interval:
    return interval(by_seed, minus, seed=run.config.bootstrap_seed, confidence=run.config.confidence)


def _method(config: "EvaluationConfig") -> dict[str, str]:
    return {
        "intervals": f"{config.confidence:.0%} bootstrap percentile intervals, {config.draws:,} draws of pictures with their "
        "captions, widened by Student's t for what another seed would give where a number is over several; not corrected for the "
        "number of comparisons",
        "differences": "model minus baseline, paired by picture and seed; resolved where the interval excludes 0",
        "splits": "queries are those of the split, the gallery and the classes are the whole set",
        "mean_recall": "the mean of R@1, R@5 and R@10, image to text and text to image",
        "mean_rank": "share of the gallery that stands before the right match, percent; 0 is best, 50 is chance; equal "
        "scores, such as those of texts that are the same, count as a random order of them does on average",
        "median_rank": "the rank of the right match that half of the queries reach; 1 is best",
        "unreadable": "a picture that can't be read is a miss: it and its captions have the last rank",
        "zeroshot": "a class is the normalised mean of its templates",
    }
