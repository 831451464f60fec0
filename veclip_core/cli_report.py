"""`veclip report`: one page of results that are already there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veclip_core.settings import Settings

if TYPE_CHECKING:
    from veclip_core.evaluation.paper import PaperVerdict
    from veclip_core.evaluation.report.inputs import Contamination

commands = typer.Typer()


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
    title: Annotated[str, typer.Option(help="The page's title.")] = "Models beside each other",
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
    found = {_called(name): read_results(name, reports) for name in dict.fromkeys(names)}
    merged = merge_results(found)
    options = [f"--title '{title}'"] if title != "Models beside each other" else []
    howto = HowTo(
        [" ".join(["veclip report", *names, *options])],
        {name: f"evaluation {results['identity']}" for name, results in found.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        page = write_models_page(
            merged,
            Path(folder) / "report.html",
            title=title,
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


def _called(name: str) -> str:
    """What tells the results from others: the report's name, or a results.json's folder."""
    path = PurePosixPath(name)
    return path.parent.name or path.stem if path.name == "results.json" else path.name.removesuffix(".json")


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
