"""`veclip sweep`: the paper's sweeps, from manifest to figure."""

from pathlib import Path
from typing import Annotated

import typer

from veclip_core.cli_options import ScaleOption, scale_of
from veclip_core.cli_training import overrides
from veclip_core.settings import Settings
from veclip_core.training.sweeps import SWEEPS

commands = typer.Typer()

ALL = "all"


@commands.command("sweep")
def sweep(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(SWEEPS)}; or {ALL}, one after another.")],
    scale: ScaleOption = "sample",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2; by default the sweep's.")] = "",
    arms: Annotated[str, typer.Option(help="Only these of the sweep's arms, such as clip,mix_25.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer training steps, for a trial.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also write the figure on white, to a file that ends in .svg or .png.")
    ] = None,
) -> None:
    """Train what is missing of a sweep, and write its report. Running it again trains nothing that is done."""
    from veclip_core.cli import comparison
    from veclip_core.evaluation.report.sweep_figures import figure_of, require_format
    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.sweeps import report_sweep, train_sweep

    if name not in (*SWEEPS, ALL):
        raise typer.BadParameter(f"there is no sweep {name!r}; there are {', '.join(SWEEPS)}, and {ALL}")
    if name == ALL and (arms or figure is not None):
        raise typer.BadParameter("--arms and --figure are for one sweep: name it")
    if figure is not None:
        require_format(figure)
    chosen = [one.of(_words(arms), _numbers(seeds)) for one in (SWEEPS.values() if name == ALL else (SWEEPS[name],))]
    chain = Chain(Settings.from_environment(), scale_of(scale))
    for one in chosen:
        made = report_sweep(chain, one, train_sweep(chain, one, overrides=overrides(steps)), steps=steps)
        typer.echo(f"{one.title}\n\n{comparison(made.results)}\n\nReport: {made.page_uri}")
        if figure is not None:
            typer.echo(f"Figure: {figure_of(made.results, one).save(figure)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    words = _words(text)
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise typer.BadParameter(f"--seeds {text}: give different whole numbers, such as 0,1,2")
    return [int(word) for word in words]
