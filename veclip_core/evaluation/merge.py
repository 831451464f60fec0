"""Results that were made at different times as one: models, sets and seeds beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from veclip_core.config import digest_of
from veclip_core.mendable import Mendable

NEEDED = (
    "models",
    "seeds",
    "sets",
    "summary",
    "differences",
    "headline",
    "comparisons",
    "config",
    "identity",
    "method",
)
LISTED = ("scores", "summary", "differences")
JOINED = ("trainings", "evaluated", "verdicts", "contamination")


class ResultsError(Mendable, ValueError):
    """Results are not there, are none, or can't stand beside each other."""


def merge_results(named: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `compare` returns, of several of its results; of one, that itself.

    A model of two results is one where its scores on the sets of both are the same. Where they differ it is two, told apart by
    seeds, or else by the results' names: intervals over seeds can't be had from results alone.

    Args:
        named: what to call each of them, and the results.

    Raises:
        ResultsError: when they were scored in different ways or saw different contents under one set's name.
    """
    for name, results in named.items():
        missing = [key for key in NEEDED if key not in results]
        missing += [f"the templates of {of}" for of, told in results.get("sets", {}).items() if "templates" not in told]
        if missing:
            raise ResultsError(
                f"{name} is not the results of an evaluation, or those of an older version: it lacks {', '.join(missing)}."
                " Make the report again"
            )
    _require_same_config(named)
    _require_same_sets(named)
    renamed = _names(named)
    parts = [_with_models(results, renamed[name]) for name, results in named.items()]
    merged = dict(parts[0])
    if len(parts) == 1:
        return merged
    baselines = {part.get("baseline") for part in parts}
    merged |= {key: _distinct(row for part in parts for row in part.get(key, ())) for key in LISTED}
    merged |= {
        key: _distinct(row for part in parts for row in part.get(key, ()))
        for key in JOINED
        if any(key in part for part in parts)
    }
    sets: dict[str, Any] = {}
    for part in parts:
        sets |= {name: of_set for name, of_set in part["sets"].items() if name not in sets}
    differences = merged["differences"]
    return merged | {
        "baseline": baselines.pop() if len(baselines) == 1 else None,
        "models": list(dict.fromkeys(model for part in parts for model in part["models"])),
        "seeds": sorted({seed for part in parts for seed in part["seeds"]}),
        "sets": sets,
        "config": next((part["config"] for part in parts if _takes_templates(part)), merged["config"]),
        "partial": any(part.get("partial") for part in parts),
        "headline": {
            "contrasts": _distinct(pair for part in parts for pair in part["headline"]["contrasts"]),
            "metrics": _distinct(metric for part in parts for metric in part["headline"]["metrics"]),
            "splits": [split for split in parts[0]["headline"]["splits"] if _everywhere(split, parts)],
        },
        "comparisons": {
            "made": len(differences),
            "resolved": sum(row["resolved"] for row in differences),
            "headline": sum(part["comparisons"]["headline"] for part in parts),
            "headline_resolved": sum(part["comparisons"]["headline_resolved"] for part in parts),
        },
        "identity": digest_of(sorted({part["identity"] for part in parts}))[:32],
    }


def _everywhere(split: str, parts: Sequence[Mapping[str, Any]]) -> bool:
    return all(split in part["headline"]["splits"] for part in parts)


def _require_same_config(named: Mapping[str, Mapping[str, Any]]) -> None:
    """Templates are compared where sets took them: one that has its own is scored by these whatever others are."""
    for (first, results), (name, other) in combinations(named.items(), 2):
        ours, theirs = results["config"], other["config"]
        differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        if not (_takes_templates(results) and _takes_templates(other)) and "templates" in differing:
            differing.remove("templates")
        if differing:
            raise ResultsError(
                f"{first} and {name} were scored in different ways, by {', '.join(differing)}: evaluate one of them again as the"
                " other was"
            )


def _takes_templates(results: Mapping[str, Any]) -> bool:
    """Whether a set of these results was scored by the configuration's templates."""
    return any(
        list(results["config"]["templates"]) in of_set["templates"].values() for of_set in results["sets"].values()
    )


def _require_same_sets(named: Mapping[str, Mapping[str, Any]]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    templates: dict[str, tuple[str, Any]] = {}
    for name, results in named.items():
        for of, evaluation_set in results["sets"].items():
            first, content = seen.setdefault(of, (name, evaluation_set["content"]))
            by = templates.setdefault(of, (name, evaluation_set["templates"]))[1]
            if by != evaluation_set["templates"]:
                raise ResultsError(
                    f"the classes of {of} were embedded by other templates in {name} than in {first}: evaluate one of them"
                    " again as the other was, or give one of the sets another name"
                )
            if content != evaluation_set["content"]:
                raise ResultsError(
                    f"the set {of} of {first} has another content ({content[:12]}) than that of {name}"
                    f" ({evaluation_set['content'][:12]}): evaluate both on the same, or give one of them another name"
                )


def _names(named: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """For each of the results: model to its name in all of them."""
    renamed: dict[str, dict[str, str]] = {name: {model: model for model in r["models"]} for name, r in named.items()}
    for model in dict.fromkeys(model for results in named.values() for model in results["models"]):
        holders = [name for name, results in named.items() if model in results["models"]]
        if all(_agree(named[one], named[other], model) for one in holders for other in holders):
            continue
        seeds = {name: _seeds(named[name], model) for name in holders}
        by_seed = len(set(seeds.values())) == len(holders)
        for name in holders:
            told = f"seed{'s' if len(seeds[name]) > 1 else ''} {', '.join(map(str, seeds[name]))}" if by_seed else name
            renamed[name][model] = f"{model} ({told})"
    return renamed


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], model: str) -> bool:
    """Whether two results say the same of a model wherever both say something: its weights by seed, its scores."""
    for said in (_weights, _scores):
        ours, theirs = said(one, model), said(other, model)
        if any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()):
            return False
    return True


def _weights(results: Mapping[str, Any], model: str) -> dict[Any, Any]:
    """By seed. A digest or the hub's commit, so that neither a folder's name nor its place matters."""
    rows = [row for listed in ("trainings", "evaluated") for row in results.get(listed, ()) if row["model"] == model]
    return {row["seed"]: row.get("revision") or row.get("checkpoint") or row.get("weights") for row in rows}


def _scores(results: Mapping[str, Any], model: str) -> dict[Any, Any]:
    return {
        (row["set"], row["split"], row["metric"]): (row["value"], row["seeds"])
        for row in results["summary"]
        if row["model"] == model
    }


def _seeds(results: Mapping[str, Any], model: str) -> tuple[int, ...]:
    return tuple(sorted({seed for row in results["summary"] if row["model"] == model for seed in row["seeds"]}))


def _with_models(results: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The results with their models renamed wherever they stand."""

    def row(of: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: names.get(value, value)
            if key in ("model", "baseline", "favours") and isinstance(value, str)
            else value
            for key, value in of.items()
        }

    base = results.get("baseline")
    changed = {key: [row(one) for one in results[key]] for key in (*LISTED, *JOINED) if key in results}
    contrasts = [[names.get(model, model) for model in pair] for pair in results["headline"]["contrasts"]]
    return {
        **results,
        **changed,
        "baseline": names.get(base, base) if isinstance(base, str) else None,
        "models": [names[model] for model in results["models"]],
        "headline": {**results["headline"], "contrasts": contrasts},
    }


def _distinct(rows: Iterator[Any]) -> list[Any]:
    """Each once, in order; rows that are equal in two results are one."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(digest_of(row), row)
    return list(found.values())
