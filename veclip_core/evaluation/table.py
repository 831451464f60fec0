"""Results of any models on any sets as text, for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from veclip_core.evaluation.paper import COLUMNS, SOURCE, PaperVerdict

MODELS_ACROSS = 4
"""Models side by side, before another block of columns begins."""
NAME_CHARS, CELL_CHARS = 32, 26


def results_text(results: Mapping[str, Any]) -> str:
    """Every metric over all queries with its interval, set by set; then each model's difference to the baseline."""
    head = (
        f"Percent, but for median ranks; {results['config']['confidence']:.0%} intervals; lower is better of ranks.\n"
    )
    return "\n".join([head, *(line for name in results["sets"] for line in _of_set(results, name))]).rstrip("\n")


def _of_set(results: Mapping[str, Any], name: str) -> Iterator[str]:
    rows = {
        (row["model"], row["metric"]): row for row in results["summary"] if (row["set"], row["split"]) == (name, "all")
    }
    of_set = results["sets"][name]
    counts = [f"{of_set['pictures']:,} pictures", f"{of_set['captions']:,} captions"]
    counts += [f"{classes:,} classes ({label})" for label, classes in of_set["classes"].items()]
    counts += [f"{count:,} {what.replace('_', ' ')}" for what, count in of_set.get("notes", {}).items() if count]
    yield f"{name}: {', '.join(counts)}"
    models = [model for model in results["models"] if any(of == model for of, _ in rows)]
    for first in range(0, len(models), MODELS_ACROSS):
        yield from _block(rows, models[first : first + MODELS_ACROSS])
    differences = [row for row in results["differences"] if (row["set"], row["split"]) == (name, "all")]
    for model, baseline in dict.fromkeys((row["model"], row["baseline"]) for row in differences):
        yield f"  {model} minus {baseline}"
        for row in differences:
            if (row["model"], row["baseline"]) == (model, baseline):
                word = f"favours {row['favours']}" if row["resolved"] else "not resolved"
                yield f"  {row['metric']:<{NAME_CHARS}}{row['value']:>+9.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {word}"
        yield ""


def _block(rows: Mapping[tuple[str, str], Mapping[str, Any]], models: Sequence[str]) -> Iterator[str]:
    metrics = dict.fromkeys(metric for model, metric in rows if model in models)
    yield f"  {'':<{NAME_CHARS}}" + "".join(_short(model).rjust(CELL_CHARS) for model in models) + "chance".rjust(10)
    for metric in metrics:
        cells = [rows.get((model, metric)) for model in models]
        chance = next(cell["chance"] for cell in cells if cell is not None)
        values = "".join(("" if cell is None else _value(cell)).rjust(CELL_CHARS) for cell in cells)
        yield f"  {metric:<{NAME_CHARS}}{values}" + ("" if chance is None else f"{chance:>10.2f}")
    yield ""


def _value(cell: Mapping[str, Any]) -> str:
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def _short(model: str) -> str:
    return model if len(model) < CELL_CHARS else f"…{model[2 - CELL_CHARS :]}"


def verdicts_text(verdicts: Sequence[PaperVerdict]) -> str:
    """Measured scores beside the published ones, each with what came of it."""
    lines = [
        f"Beside the {SOURCE}: the same within {verdicts[0].tolerance} points?",
        f"  {'':<50}{'measured':>10}{'published':>11}{'difference':>12}",
    ]
    for one in verdicts:
        what = f"{one.model}, {COLUMNS[one.column]}"
        lines.append(f"  {what:<50}{one.measured:>10.2f}{one.published:>11.2f}{one.difference:>+12.2f}  {one.word}")
        lines += [f"      {note}" for note in (one.note, one.misprint) if note]
    return "\n".join(lines)
