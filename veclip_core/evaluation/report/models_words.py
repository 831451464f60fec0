"""The short answer of a page on any models and sets: only what intervals resolve is said to lead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from veclip_core.evaluation.report.words import metric_name, number, signed, verdict

Row = Mapping[str, Any]
MOST_SENTENCES = 4
"""Sets that get a sentence each: of more, the table below tells."""
MOST_NAMED = 8
NOTE_NAMES = {
    "duplicate_pictures": "pictures equal to another of the set",
    "unreadable": "pictures that can\u2019t be read, counted as misses",
    "empty_classes": "classes without a picture",
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
        """The highest model, where its interval lies above those of all others; the baseline it must differ from by a paired
        difference, which asks for less. None: not resolved."""
        top = self.rows[self.highest]
        others = [model for model in self.rows if model != self.highest]
        return self.highest if others and all(self._above(self.highest, top, model) for model in others) else None

    def _above(self, model: str, row: Row, other: str) -> bool:
        if other == self.baseline and model in self.against:
            return verdict(self.against[model]) == "better"
        if model == self.baseline and other in self.against:
            return verdict(self.against[other]) == "worse"
        return bool(row["low"] > self.rows[other]["high"])


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


def answer(results: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, list[str], str]:
    """A short answer, sentences with its numbers, and what to know of the claims."""
    found, models = standings(results), list(results["models"])
    if not found:
        return "There are no scores.", [], ""
    sentences = [_sentence(one, labels) for one in found] if len(found) <= MOST_SENTENCES else _by_leader(found, labels)
    if len(models) == 1:
        return f"{labels[models[0]]} alone: there is nothing to compare it with.", sentences, ""
    baseline = next((one.baseline for one in found if one.baseline is not None), None)
    if baseline is not None and len(models) == 2:
        model = next(model for model in models if model != baseline)
        return _of_one(model, baseline, found, labels), sentences, ""
    if baseline is None:
        told = "These models have no one baseline"
    else:
        sentences = [*_against_baseline(baseline, models, found, labels), *sentences]
        told = f"Paired differences were computed from {labels[baseline]} alone"
    leads = "a model is said to lead others where its interval lies above theirs, which asks for more than a paired difference"
    return _leaders(found, labels), sentences, f"{told}; {leads}."


def _of_one(model: str, baseline: str, found: Sequence[Standing], labels: Mapping[str, str]) -> str:
    """One model beside the baseline."""
    verdicts = [verdict(one.against[model]) for one in found if model in one.against]
    name, base = labels[model], labels[baseline]
    if not verdicts:
        return f"{name} and {base} share no set."
    if len(verdicts) == 1:
        told = {"better": f"{name} beats {base}", "worse": f"{name} is worse than {base}"}
        where = found[0].set if len(found) == 1 else "the one set that both saw"
        return f"{told.get(verdicts[0], f'{name} against {base} is not resolved')} on {where}."
    counted = {word: verdicts.count(word) for word in ("better", "worse", "not resolved")}
    parts = [f"{word} on {count}" for word, count in counted.items() if count]
    return f"{name} against {base}, {len(verdicts)} sets: {', '.join(parts)}."


def _leaders(found: Sequence[Standing], labels: Mapping[str, str]) -> str:
    leaders = [one.leader for one in found]
    counts = {model: leaders.count(model) for model in dict.fromkeys(leaders) if model is not None}
    if not counts:
        return f"No single model leads on {found[0].set if len(found) == 1 else f'any of {len(found)} sets'}."
    if len(found) == 1:
        return f"{labels[found[0].highest]} leads on {found[0].set}."
    told = [f"{labels[model]} leads on {n}" for model, n in sorted(counts.items(), key=lambda item: -item[1])]
    return f"Of {len(found)} sets, {_listed(told)}" + (
        f"; on {n} no single model leads." if (n := leaders.count(None)) else "."
    )


def _against_baseline(
    baseline: str, models: Sequence[str], found: Sequence[Standing], labels: Mapping[str, str]
) -> list[str]:
    """On how many sets each model is resolved to be better or worse than the baseline."""
    sentences = []
    for word in ("better", "worse"):
        counted = {
            model: sum(model in one.against and verdict(one.against[model]) == word for one in found)
            for model in models
        }
        most = sorted((model for model, count in counted.items() if count), key=lambda model: -counted[model])
        told = [f"{labels[model]} on {counted[model]}" if len(found) > 1 else labels[model] for model in most]
        if told:
            of = f"Of {len(found)} sets, {word}" if len(found) > 1 else word.capitalize()
            sentences.append(f"{of} than {labels[baseline]}: {_listed(told)}.")
    return sentences or [f"No difference from {labels[baseline]} is resolved."]


def _by_leader(found: Sequence[Standing], labels: Mapping[str, str]) -> list[str]:
    by_leader: dict[str | None, list[str]] = {}
    for one in found:
        by_leader.setdefault(one.leader, []).append(one.set)
    unled = by_leader.pop(None, [])
    told = [f"{labels[model]} leads on {_listed(sets)}." for model, sets in by_leader.items() if model is not None]
    return [*told, f"No single model leads on {_listed(unled)}."] if told and unled else told


def _listed(items: Sequence[str]) -> str:
    shown = list(items[:MOST_NAMED])
    return ", ".join(shown) + (f" and {len(items) - len(shown)} more" if len(items) > len(shown) else "")


def _sentence(one: Standing, labels: Mapping[str, str]) -> str:
    """The highest model with its interval; beside it the baseline, or the model nearest to it."""
    head = f"On {one.set}, {metric_name(one.metric).lower()}: {labels[one.highest]} {_with_interval(one.rows[one.highest])}"
    others = [model for model in one.rows if model != one.highest]
    chance = one.rows[one.highest]["chance"]
    if not others:
        return f"{head}{'' if chance is None else f'; chance gives {number(chance)}'}."
    beside = one.baseline if one.baseline in others else others[0]
    told = f"{head}, {labels[beside]} {_with_interval(one.rows[beside])}"
    if beside == one.baseline and one.highest in one.against:
        row = one.against[one.highest]
        value, low, high = row["value"], row["low"], row["high"]
    elif one.highest == one.baseline and beside in one.against:
        row = one.against[beside]
        value, low, high = -row["value"], -row["high"], -row["low"]
    else:
        return f"{told}{'' if one.leader else '; not resolved'}."
    shown = f"{signed(value)} points ({number(low)} to {number(high)})"
    return f"{told}: {shown}{'' if row['resolved'] else ', not resolved'}."


def _with_interval(row: Row) -> str:
    return f"{number(row['value'])}\u00a0% ({number(row['low'])} to {number(row['high'])})"


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


Kind = Literal["recall", "ranks", "classification"]


def kind_of(metric: str) -> Kind:
    """In which table it stands."""
    if metric.startswith("zeroshot_"):
        return "classification"
    return "ranks" if metric.endswith("_rank") else "recall"
