"""The report's sentences, made from the numbers: a claim is made only where an interval excludes 0."""

from collections.abc import Mapping
from typing import Any

QUESTION = "Does training on AltText mixed with visual\u2011enriched captions beat AltText alone?"
CONTROL = "control"
METRIC_NAMES = {
    "mean_recall": "Mean recall",
    "mean_rank": "Mean rank",
    "i2t_mean_rank": "Mean rank, image to text",
    "t2i_mean_rank": "Mean rank, text to image",
}
SPLIT_NAMES = {"all": "All", "fitted": "Concepts the captioner knows", "unseen": "Concepts held out from it"}
SET_NAMES = {"openmoji": "OpenMoji, an artist neither captioner nor models have seen"}
MODEL_NAMES = {
    "clip": "AltText only",
    "veclip": "Mixed",
    "control": "Control",
    "vecap_only": "VeCap only",
    "template_only": "Template only",
    "vec_only": "VeC only",
}
MODEL_NOTES = {
    "clip": "every picture always comes with its AltText",
    "veclip": "at every step it comes with its AltText or its VeCap, drawn anew",
    "control": "as mixed, but its VeCaps are fused from the VeC of another picture",
    "vecap_only": "always with its VeCap, the language model's fusion of AltText and VeC",
    "template_only": "always with AltText and VeC one after the other, no language model",
    "vec_only": "always with what the captioner saw",
}
SAME = "Initial weights, pictures, batches and crops are the same in all."


def metric_name(metric: str) -> str:
    """ "i2t_r@1" -> "R@1, image to text"."""
    if metric in METRIC_NAMES:
        return METRIC_NAMES[metric]
    way, _, rest = metric.partition("_")
    if rest.startswith("r@"):
        return f"{rest.upper()}, {'image to text' if way == 'i2t' else 'text to image'}"
    kind, _, label = metric.removeprefix("zeroshot_").rpartition("_")
    kinds = {"top1": "Zero-shot top-1", "top5": "Zero-shot top-5", "per_class": "Zero-shot mean per class"}
    return f"{kinds.get(kind, kind)}, {label}"


def number(value: float) -> str:
    """Two decimals below 10, one above; a true minus sign."""
    return f"{value:.{2 if abs(value) < 9.995 else 1}f}".replace("-", "−")


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def verdict(row: Mapping[str, Any]) -> str:
    """ "better", "worse" or "not resolved": of the model against its baseline."""
    if not row["resolved"]:
        return "not resolved"
    return "worse" if row["favours"] == row["baseline"] else "better"


def answer(results: Mapping[str, Any], labels: Mapping[str, str], name: str) -> tuple[str, list[str]]:
    """A short answer and three sentences on split "all" of the set, from the pairs of the headline."""
    contrasts = [tuple(pair) for pair in results["headline"]["contrasts"]]
    rows = {
        (row["model"], row["baseline"], row["metric"]): row
        for row in results["differences"]
        if (row["set"], row["split"]) == (name, "all")
    }
    if not contrasts or (*contrasts[0], "mean_recall") not in rows:
        return "No comparison.", ["Only one model was evaluated: evaluate the baseline too and write the report again."]
    model, base = contrasts[0]
    values = {(r["model"], r["metric"]): r for r in results["summary"] if r["set"] == name and r["split"] == "all"}
    recall, rank = rows[model, base, "mean_recall"], rows[model, base, "mean_rank"]
    of_set = results["sets"][name]
    first = (
        f"On {of_set['pictures']:,} pictures of {SET_NAMES.get(name, name)}, {labels[model]} training "
        f"{_claim(recall, 'raises', 'lowers', 'mean recall')} "
        f"{number(values[base, 'mean_recall']['value'])} to {number(values[model, 'mean_recall']['value'])}\u00a0% "
        f"({signed(recall['value'])}, {interval(recall)}; chance {number(recall['chance'])}\u00a0%)."
    )
    second = (
        f"The right match moves from {number(values[base, 'mean_rank']['value'])} to "
        f"{number(values[model, 'mean_rank']['value'])}\u00a0% of the way down the list "
        f"({signed(rank['value'])}, {interval(rank)}; lower is better, chance {number(rank['chance'])}\u00a0%)"
        f"{', a difference that is not resolved' if not rank['resolved'] else ''}."
    )
    short = _short(verdict(recall), verdict(rank))
    seeds = len(recall["seeds"])
    covered = f"pictures and {seeds} seeds" if seeds > 1 else "pictures, but not what another seed would give"
    control = {metric: rows.get((CONTROL, base, metric)) for metric in ("mean_recall", "mean_rank")}
    if control["mean_recall"] is None or control["mean_rank"] is None:
        of_model = {metric: row for (m, b, metric), row in rows.items() if (m, b) == (model, base)}
        return short, [first, second, _zeroshot(of_model, covered)]
    of_control = {metric: row for metric, row in control.items() if row is not None}
    return f"{short} {_short_control(of_control)}", [first, second, _control(of_control, labels[CONTROL], covered)]


def interval(row: Mapping[str, Any]) -> str:
    return f"95\u00a0%\u00a0interval {number(row['low'])} to {number(row['high'])}"


def _claim(row: Mapping[str, Any], raises: str, lowers: str, metric: str) -> str:
    if not row["resolved"]:
        return f"changes {metric} by an amount that is not resolved, from"
    return f"{raises if row['value'] > 0 else lowers} {metric} from"


def _short(recall: str, rank: str) -> str:
    found = {recall, rank}
    if found == {"better"}:
        return "Yes, at this size."
    if found == {"worse"}:
        return "No: at this size it is worse."
    if found == {"not resolved"}:
        return "Not resolved at this size."
    if found == {"better", "worse"}:
        return "The two headline metrics disagree."
    one, other = ("recall", "rank") if recall != "not resolved" else ("rank", "recall")
    return f"In part: mean {one} is {(found - {'not resolved'}).pop()}, mean {other} is not resolved."


def _short_control(rows: Mapping[str, Mapping[str, Any]]) -> str:
    found = [verdict(row) for row in rows.values()]
    if "better" in found:
        return "But the control gains too: not all of it comes from what the captioner saw."
    if found == ["not resolved", "not resolved"]:
        return "With another picture\u2019s description no gain shows."
    return "With another picture\u2019s description it gains nothing."


def _control(rows: Mapping[str, Mapping[str, Any]], label: str, covered: str) -> str:
    recall, rank = rows["mean_recall"], rows["mean_rank"]

    def told(row: Mapping[str, Any], metric: str) -> str:
        word = "not resolved" if not row["resolved"] else verdict(row)
        return f"mean {metric} by {signed(row['value'])} ({interval(row)}; {word})"

    return (
        f"The {label.lower()}, mixed in the same way but with captions fused from another picture\u2019s description, changes "
        f"{told(recall, 'recall')} and {told(rank, 'rank')} against AltText alone; all intervals cover {covered}."
    )


def _zeroshot(rows: Mapping[str, Mapping[str, Any]], covered: str) -> str:
    """One sentence on zero-shot classification and on what the intervals cover."""
    found = [(verdict(row), metric, row) for metric, row in rows.items() if metric.startswith("zeroshot_top1_")]
    parts = [
        f"by {metric.removeprefix('zeroshot_top1_')} is {word}"
        + (f" ({signed(row['value'])})" if row["resolved"] else "")
        for word, metric, row in sorted(found, key=lambda entry: (entry[0] == "not resolved", entry[1]))
    ]
    if not parts:
        return f"The intervals cover {covered}."
    return f"Zero-shot classification {' and '.join(parts)}; the intervals cover {covered}."
