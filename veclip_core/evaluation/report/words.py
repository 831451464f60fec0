"""The report's sentences, made from the numbers: a claim is made only where an interval excludes 0."""

from collections.abc import Mapping, Sequence
from typing import Any

QUESTION = "Does training on AltText mixed with visual\u2011enriched captions beat AltText alone?"
CONTROL = "control"
METRIC_NAMES = {
    "mean_recall": "Mean recall",
    "mean_rank": "Mean rank",
    "i2t_mean_rank": "Mean rank, image to text",
    "t2i_mean_rank": "Mean rank, text to image",
    "i2t_median_rank": "Median rank, image to text",
    "t2i_median_rank": "Median rank, text to image",
    "selection_accuracy": "Right caption chosen",
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
    "mix_25": "A quarter VeCap",
    "mix_75": "Three quarters VeCap",
    "clip_25pct": "AltText only, 25 % of rows",
    "veclip_25pct": "Mixed, 25 % of rows",
    "clip_50pct": "AltText only, 50 % of rows",
    "veclip_50pct": "Mixed, 50 % of rows",
}
MODEL_NOTES = {
    "clip": "every picture always comes with its AltText",
    "veclip": "at every step it comes with its AltText or its VeCap, drawn anew",
    "control": "as mixed, but its VeCaps are fused from the VeC of another picture",
    "vecap_only": "always with its VeCap",
    "template_only": "always with AltText and VeC one after the other, no language model",
    "vec_only": "always with its VeC",
    "mix_25": "as mixed, but only every fourth text is a VeCap",
    "mix_75": "as mixed, but three of four texts are VeCaps",
    "clip_25pct": "as AltText only, on a quarter of the rows with as many steps",
    "veclip_25pct": "as mixed, on the same quarter of the rows with as many steps",
    "clip_50pct": "as AltText only, on half of the rows with as many steps",
    "veclip_50pct": "as mixed, on the same half of the rows with as many steps",
}
SAME = (
    "VeC is what the captioner says of the picture, VeCap a language model's fusion of AltText and VeC. Initial weights, pictures, "
    "batches and crops are the same in all; a text that is missing is replaced by the AltText."
)


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
    """A short answer and three sentences, from the pairs of the headline: over all queries, against the control, by split."""
    contrasts = [tuple(pair) for pair in results["headline"]["contrasts"]]
    rows = {
        (row["model"], row["baseline"], row["split"], row["metric"]): row
        for row in results["differences"]
        if row["set"] == name
    }
    if not contrasts or (*contrasts[0], "all", "mean_recall") not in rows:
        return "No comparison.", ["Only one model was evaluated: evaluate the baseline too and write the report again."]
    model, base = contrasts[0]
    values = {
        (r["model"], r["metric"]): r["value"] for r in results["summary"] if r["set"] == name and r["split"] == "all"
    }
    recall, rank = rows[model, base, "all", "mean_recall"], rows[model, base, "all", "mean_rank"]
    first = (
        f"On {results['sets'][name]['pictures']:,} pictures of {SET_NAMES.get(name, name)}, {labels[model]} training takes mean "
        f"recall from {number(values[base, 'mean_recall'])} to {number(values[model, 'mean_recall'])}\u00a0% "
        f"({_told(recall)}; chance {number(recall['chance'])}\u00a0%) and the right match from "
        f"{number(values[base, 'mean_rank'])} to {number(values[model, 'mean_rank'])}\u00a0% of the way down the list "
        f"({_told(rank)}; lower is better, chance {number(rank['chance'])}\u00a0%)."
    )
    short, sentences = [_short(verdict(recall), verdict(rank))], [first]
    if (model, CONTROL, "all", "mean_recall") in rows:
        over = [rows[model, CONTROL, "all", metric] for metric in ("mean_recall", "mean_rank")]
        short.append(_short_control([verdict(row) for row in over]))
        sentences.append(
            f"The {labels[CONTROL].lower()}, mixed in the same way but with captions fused from another picture\u2019s "
            f"description, has {number(values[CONTROL, 'mean_recall'])} and {number(values[CONTROL, 'mean_rank'])}\u00a0%: "
            f"against it {labels[model].lower()} changes mean recall by {_told(over[0])} and mean rank by {_told(over[1])}."
        )
    else:
        zeroshot = {key[3]: row for key, row in rows.items() if key[:3] == (model, base, "all")}
        sentences.append(_zeroshot(zeroshot))
    splits = {
        split: [rows[model, base, split, metric] for metric in ("mean_recall", "mean_rank")]
        for split in ("fitted", "unseen")
        if (model, base, split, "mean_recall") in rows
    }
    if "unseen" in splits:
        short.append(_short_unseen([verdict(row) for row in splits["unseen"]]))
    seeds = len(recall["seeds"])
    covered = f"pictures and {seeds} seeds" if seeds > 1 else "pictures, but not what another seed would give"
    by_split = "; ".join(
        f"on {SPLIT_NAMES[split].lower()} mean recall changes by {_told(r)} and mean rank by {_told(k)}"
        for split, (r, k) in splits.items()
    )
    sentences.append(f"{by_split[:1].upper()}{by_split[1:]}{'; all' if by_split else 'All'} intervals cover {covered}.")
    return " ".join(part for part in short if part), sentences


def why_open(row: Mapping[str, Any]) -> str:
    """Why the interval of a difference over several seeds holds 0: too few pictures, or seeds that differ too much."""
    pictures, half_width = row["spread"]["pictures"], row["spread"]["seed_half_width"]
    low, high = number(pictures["low"]), number(pictures["high"])
    over_pictures = f"over pictures alone, with these seeds, the interval is {low} to {high}"
    seeds = (
        f"from seed to seed it differs by {number(row['spread']['seed_deviation'])} (standard deviation), which "
        f"{len(row['seeds'])} seeds leave open to ±{number(half_width)}"
    )
    if pictures["low"] > 0 or pictures["high"] < 0:
        return f"{over_pictures} and excludes 0; but {seeds}. More seeds would decide it."
    if half_width < abs(row["value"]):
        return f"{seeds}, less than the difference; but {over_pictures}. More pictures would decide it."
    return f"{over_pictures}, and {seeds}. Neither decides it."


def _told(row: Mapping[str, Any]) -> str:
    """ "+0.62, 95 % interval 0.20 to 1.06", and where that holds 0, that it is not resolved."""
    shown = f"{signed(row['value'])}, 95\u00a0%\u00a0interval {number(row['low'])} to {number(row['high'])}"
    return shown if row["resolved"] else f"{shown}, not resolved"


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


def _short_control(over: Sequence[str]) -> str:
    """What helped: only a difference to the control shows that it was the description."""
    if "worse" in over:
        return "Captions from another picture\u2019s description do better still."
    if over == ["better", "better"]:
        return "It beats captions made from another picture\u2019s description too."
    if "better" in over:
        return "Against captions made from another picture\u2019s description it is better in part."
    return "Against captions made from another picture\u2019s description it is not resolved."


def _short_unseen(unseen: Sequence[str]) -> str:
    if unseen == ["better", "better"]:
        return ""
    if set(unseen) == {"not resolved"}:
        return "On concepts held out from the captioner it is not resolved."
    if "worse" in unseen:
        return "On concepts held out from the captioner it is not better."
    return "On concepts held out from the captioner it is better in part."


def _zeroshot(rows: Mapping[str, Mapping[str, Any]]) -> str:
    found = [(verdict(row), metric, row) for metric, row in rows.items() if metric.startswith("zeroshot_top1_")]
    parts = [
        f"by {metric.removeprefix('zeroshot_top1_')} is {word}"
        + (f" ({signed(row['value'])})" if row["resolved"] else "")
        for word, metric, row in sorted(found, key=lambda entry: (entry[0] == "not resolved", entry[1]))
    ]
    return f"Zero-shot classification {' and '.join(parts)}." if parts else "Classification was not evaluated."
