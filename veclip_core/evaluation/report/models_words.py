"""The short answer of a page on any models and sets: only what intervals resolve is said to lead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from veclip_core.evaluation.report.words import metric_name, number, signed, verdict

Row = Mapping[str, Any]
MOST_SENTENCES = 6
"""Sets that get a sentence each: of more, the table below tells."""
NOTE_NAMES = {
    "duplicate_pictures": "pictures that stand in the set more than once",
    "unreadable": "pictures that can\u2019t be read, left out",
    "empty_classes": "classes without a picture",
    "captions_left_out": "captions left out",
}


@dataclass(frozen=True)
class Standing:
    """One set by its main metric."""

    set: str
    metric: str
    rows: Mapping[str, Row]
    """Model to its summary row, the highest first."""
    against: Mapping[str, Row]
    """Model to its difference from the baseline."""
    baseline: str | None

    @property
    def highest(self) -> str:
        return next(iter(self.rows))

    @property
    def leader(self) -> str | None:
        """The highest model, where intervals resolve that it is above the baseline; the baseline, where all others are below it.
        Without a baseline: the highest, where its interval lies above all others'. None: not resolved."""
        others = [model for model in self.rows if model != self.highest]
        if self.baseline is None or not self.against:
            low = self.rows[self.highest]["low"]
            return self.highest if others and all(self.rows[model]["high"] < low for model in others) else None
        if self.highest != self.baseline:
            found = self.against.get(self.highest)
            return self.highest if found and verdict(found) == "better" else None
        return self.baseline if all(verdict(row) == "worse" for row in self.against.values()) else None


def main_metric(metrics: Sequence[str]) -> str:
    """What a set is first read by: mean recall, else the right one of the captions, else the first top-1 accuracy."""
    for wanted in ("mean_recall", "selection_accuracy"):
        if wanted in metrics:
            return wanted
    return next((metric for metric in metrics if metric.startswith("zeroshot_top1_")), metrics[0])


def standings(results: Mapping[str, Any]) -> list[Standing]:
    """How the models stand on each set."""
    baseline = results.get("baseline")
    found = []
    for name in results["sets"]:
        rows = [row for row in results["summary"] if row["set"] == name and row["split"] == "all"]
        if not rows:
            continue
        metric = main_metric(list(dict.fromkeys(row["metric"] for row in rows)))
        of_metric = {row["model"]: row for row in rows if row["metric"] == metric}
        against = {
            row["model"]: row
            for row in results["differences"]
            if (row["set"], row["split"], row["metric"], row["baseline"]) == (name, "all", metric, baseline)
        }
        ordered = dict(sorted(of_metric.items(), key=lambda item: -item[1]["value"]))
        found.append(Standing(name, metric, ordered, against, baseline if baseline in of_metric else None))
    return found


def answer(results: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, list[str]]:
    """A short answer, and sentences with its numbers."""
    found = standings(results)
    if not found:
        return "There are no scores.", []
    models = list(results["models"])
    sentences = [_sentence(standing, labels) for standing in found[:MOST_SENTENCES]]
    if len(found) > MOST_SENTENCES:
        sentences = [*_by_leader(found, labels)]
    if len(models) == 1:
        return f"{labels[models[0]]} alone: there is nothing to compare it with.", sentences
    baseline = next((one.baseline for one in found if one.baseline is not None), None)
    if baseline is None:
        sentences.append(
            "No baseline is among these models, so that no paired difference was computed: a model is said to lead where its"
            " interval lies above all others\u2019, which asks for more than a paired difference would."
        )
        return _leaders(found, labels), sentences
    others = [model for model in models if model != baseline]
    if len(others) > 1:
        sentences.append(
            f"Differences were computed from {labels[baseline]}; between two other models none is claimed."
        )
        return _leaders(found, labels), sentences
    return _of_one(others[0], baseline, found, labels), sentences


def _of_one(model: str, baseline: str, found: Sequence[Standing], labels: Mapping[str, str]) -> str:
    """One model beside the baseline."""
    verdicts = [verdict(one.against[model]) for one in found if model in one.against]
    name, base = labels[model], labels[baseline]
    if len(verdicts) == 1:
        told = {"better": f"{name} beats {base} on", "worse": f"{name} is worse than {base} on"}
        return f"{told.get(verdicts[0], f'Between {name} and {base} it is not resolved on')} {found[0].set}."
    counted = {word: verdicts.count(word) for word in ("better", "worse", "not resolved")}
    parts = [f"{word} on {count}" for word, count in counted.items() if count]
    return f"Of {len(verdicts)} sets, {name} against {base} is {', '.join(parts)}."


def _leaders(found: Sequence[Standing], labels: Mapping[str, str]) -> str:
    leaders = [one.leader for one in found]
    if len(found) == 1:
        leader = leaders[0]
        return f"{labels[leader]} leads on {found[0].set}." if leader else f"On {found[0].set} no lead is resolved."
    counts = {model: leaders.count(model) for model in dict.fromkeys(leaders) if model is not None}
    told = [f"{labels[model]} leads on {n}" for model, n in sorted(counts.items(), key=lambda item: -item[1])]
    if open_ := leaders.count(None):
        told.append(f"{'on' if told else 'no lead is resolved on'} {open_}{' no lead is resolved' if told else ''}")
    return f"Of {len(found)} sets, {', '.join(told)}."


def _by_leader(found: Sequence[Standing], labels: Mapping[str, str]) -> list[str]:
    by_leader: dict[str | None, list[str]] = {}
    for one in found:
        by_leader.setdefault(one.leader, []).append(one.set)
    told = [f"{labels[model]} leads on {', '.join(sets)}." for model, sets in by_leader.items() if model is not None]
    return [*told, *(f"Not resolved: {', '.join(sets)}." for model, sets in by_leader.items() if model is None)]


def _sentence(one: Standing, labels: Mapping[str, str]) -> str:
    metric = metric_name(one.metric)
    top = one.rows[one.highest]
    told = f"On {one.set}, {labels[one.highest]} has {_with_interval(top)} ({metric.lower()})"
    if len(one.rows) == 1 or one.baseline is None:
        second = list(one.rows)[1:2]
        told += f", before {labels[second[0]]} with {_with_interval(one.rows[second[0]])}" if second else ""
        chance = "" if top["chance"] is None else f"; chance gives {number(top['chance'])}\u00a0%"
        return f"{told}{chance}{'; not resolved' if second and one.leader is None else ''}."
    if one.highest != one.baseline:
        base = one.rows[one.baseline]
        told += f" and {labels[one.baseline]} {number(base['value'])}\u00a0%"
        return f"{told}: {_difference(one.against[one.highest])}." if one.highest in one.against else f"{told}."
    closest = next((model for model in one.rows if model in one.against), None)
    if closest is None:
        return f"{told}."
    return f"{told}, as the baseline; {labels[closest]} differs by {_difference(one.against[closest])}."


def _with_interval(row: Row) -> str:
    return f"{number(row['value'])}\u00a0% ({number(row['low'])} to {number(row['high'])})"


def _difference(row: Row) -> str:
    shown = f"{signed(row['value'])} points, interval {number(row['low'])} to {number(row['high'])}"
    return shown if row["resolved"] else f"{shown}, not resolved"


def note_name(note: str) -> str:
    return NOTE_NAMES.get(note, note.replace("_", " "))


def column_name(metric: str, labels: int) -> str:
    """The head of a column: "I\u2192T R@1", "top-1"; with several ways to name classes (`labels`), the classes' name too."""
    way, _, rest = metric.partition("_")
    if way in ("i2t", "t2i"):
        arrow = "I\u2192T" if way == "i2t" else "T\u2192I"
        return f"{arrow} {rest.upper() if rest.startswith('r@') else rest.replace('_', ' ')}"
    if metric.startswith("zeroshot_"):
        kind, of = next(
            (kind, metric.removeprefix(f"zeroshot_{kind}_"))
            for kind in ("top1", "top5", "per_class", "")
            if metric.startswith(f"zeroshot_{kind}")
        )
        name = {"top1": "top-1", "top5": "top-5", "per_class": "mean per class"}.get(kind, kind)
        return f"{name}, {of}" if labels > 1 else name
    return metric_name(metric)


Kind = Literal["retrieval", "classification"]


def kind_of(metric: str) -> Kind:
    return "classification" if metric.startswith("zeroshot_") else "retrieval"
