"""`veclip report`: one page of results that are already there."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veclip_core.settings import Settings

if TYPE_CHECKING:
    from veclip_core.evaluation.paper import PaperVerdict
    from veclip_core.evaluation.report.inputs import Chart, Contamination

commands = typer.Typer()

TITLE = "Models beside each other"


@commands.command("report")
def report(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS...",
            help="Reports by name, such as sample or sample-experiment (those of `reports` in the root), or the paths or addresses"
            " of their results.json.",
        ),
    ],
    out: Annotated[
        str, typer.Option(help="The page to write, local or remote; by default models.html in `reports` of the root.")
    ] = "",
    title: Annotated[str, typer.Option(help="The page's title.")] = TITLE,
) -> None:
    """One page of evaluations made before, beside each other: all their models, sets and seeds. No model is run."""
    import tempfile
    from pathlib import Path

    from veclip_core import storage
    from veclip_core.evaluation.merge import merge_results
    from veclip_core.evaluation.report.inputs import HowTo
    from veclip_core.evaluation.report.models_page import write_models_page
    from veclip_core.evaluation.report.words import MODEL_NAMES

    reports = storage.join(Settings.from_environment().root, "reports")
    called = told_apart(list(dict.fromkeys(names)))
    found = {known_as: read_results(name, reports) for name, known_as in called.items()}
    merged = merge_results(found)
    options = ["--out", storage.shown(out)] if out else []
    options += ["--title", title] if title != TITLE else []
    howto = HowTo(
        [shlex.join(["veclip", "report", *map(storage.shown, called), *options])],
        {name: f"evaluation {results['identity']}" for name, results in found.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        page = write_models_page(
            merged,
            Path(folder) / "report.html",
            title=title,
            charts=_charts(found, merged),
            contamination=_contamination(merged),
            verdicts=_verdicts(merged),
            howto=howto,
            labels={model: MODEL_NAMES.get(model, model) for model in merged["models"]},
        )
        where = out or storage.join(reports, "models.html")
        storage.write_bytes(where, page.read_bytes())
    typer.echo(where)


def read_results(name: str, reports: str) -> dict[str, Any]:
    """Results by the name of their report, or by where they are.

    Raises:
        ResultsError: when they are not there, or not readable.
    """
    from veclip_core import storage
    from veclip_core.evaluation.merge import ResultsError

    by_name = "/" not in name and not name.endswith(".json")
    uri = storage.join(reports, f"{name}.json") if by_name else name
    try:
        results = storage.read_json(uri)
    except FileNotFoundError:
        there = [file.removesuffix(".json") for file in storage.list_files(reports) if file.endswith(".json")]
        told = f"there are {', '.join(there)}" if there else "there is none yet: `veclip run eval_report` makes one"
        raise ResultsError(f"there are no results {uri}. Of {reports}, {told}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{uri} is not JSON ({error}): give the results.json that lies beside a report") from None
    if not isinstance(results, dict):
        raise ResultsError(
            f"{uri} is not the results of an evaluation: give the results.json that lies beside a report"
        )
    return results


def told_apart(names: Sequence[str]) -> dict[str, str]:
    """What each of the results is called: in short, where no other is called so, else by its whole path or address.

    Raises:
        ResultsError: where that is the same too, as of addresses that differ in their query.
    """
    from veclip_core import storage
    from veclip_core.evaluation.merge import ResultsError

    short = {name: _called(storage.shown(name)) for name in names}
    several = {known_as for known_as, count in Counter(short.values()).items() if count > 1}
    called = {name: storage.shown(name) if known_as in several else known_as for name, known_as in short.items()}
    if doubled := [known_as for known_as, count in Counter(called.values()).items() if count > 1]:
        raise ResultsError(f"two results are called {doubled[0]!r}: copy one of them to a file of another name")
    return called


def _called(name: str) -> str:
    """What tells the results from others: the report's name, or a results.json's folder."""
    path = PurePosixPath(name)
    return path.parent.name or path.stem if path.name == "results.json" else path.name.removesuffix(".json")


def _charts(found: Mapping[str, Mapping[str, Any]], merged: Mapping[str, Any]) -> "list[Chart]":
    """The paper's scales where results stand beside them, and each sweep's own figure."""
    from veclip_core.evaluation.report.gain_figure import gain_charts
    from veclip_core.evaluation.report.rendering import clean
    from veclip_core.evaluation.report.sweep_figures import figure_of
    from veclip_core.training.sweeps import SWEEPS

    swept = [
        (name, figure_of(results, sweep).chart())
        for name, results in found.items()
        if (sweep := SWEEPS.get(str(results.get("sweep")))) is not None and results["models"]
    ]
    return [*gain_charts(merged), *(replace(one, title=f"{one.title} ({clean(name, 60)})") for name, one in swept)]


def _contamination(results: Mapping[str, Any]) -> "list[Contamination]":
    from veclip_core.evaluation.report.inputs import Contamination

    names = {field.name for field in fields(Contamination)}
    return [Contamination(**row) for row in _with_fields(results.get("contamination", ()), names)]


def _verdicts(results: Mapping[str, Any]) -> "list[PaperVerdict]":
    from veclip_core.evaluation.paper import PaperVerdict

    names = {field.name for field in fields(PaperVerdict)}
    return [PaperVerdict(**row) for row in _with_fields(results.get("verdicts", ()), names)]


def _with_fields(rows: Sequence[Mapping[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """The rows without what was computed from them (a verdict's difference)."""
    return [{key: value for key, value in row.items() if key in names} for row in rows]
