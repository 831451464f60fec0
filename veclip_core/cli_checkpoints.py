"""`veclip checkpoint`: give a trained model to others, and look at what others have given."""

from typing import Annotated, Literal

import typer

from veclip_core.settings import Settings

commands = typer.Typer()
checkpoint = typer.Typer(help="Checkpoints, out and in.", no_args_is_help=True)
commands.add_typer(checkpoint, name="checkpoint")


@checkpoint.command("export")
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A training's folder (its last checkpoint), or one of its step-... folders."
        ),
    ],
    out: Annotated[str, typer.Argument(help="The folder to write, local or remote.")],
    format: Annotated[
        Literal["hf", "open_clip"], typer.Option(help="For transformers' CLIPModel, or for open_clip.")
    ] = "hf",
    results: Annotated[
        str, typer.Option(help="An evaluation report's results.json: its rows on this model go into the model card.")
    ] = "",
    note: Annotated[
        list[str] | None,
        typer.Option(help="A sentence for the model card, such as which stand-ins made the captions; may be repeated."),
    ] = None,
) -> None:
    """Write a folder that others load without this package: weights, tokenizer, preprocessing, model card."""
    from veclip_core import storage
    from veclip_core.mendable import Mendable
    from veclip_core.training import checkpoint as checkpoints
    from veclip_core.training.export import export_hf, export_open_clip
    from veclip_core.training.model_card import results_of

    try:
        found = checkpoints.find(source)
        rows = results_of(storage.read_json(results), found.uri) if results else []
    except (FileNotFoundError, ValueError) as error:
        raise Mendable(str(error)) from error
    write = export_hf if format == "hf" else export_open_clip
    write(found.uri, out, results=rows, notes=note or [])
    typer.echo(out)


@checkpoint.command("show")
def show(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint of ours, a released zip (path or address), a folder in transformers' or open_clip's format,"
            " or a hub id."
        ),
    ],
) -> None:
    """What a model is: architecture, parameters, tokenizer, preprocessing."""
    from veclip_core.pipeline.shown_network import facts_of

    for name, value in facts_of(model, Settings.from_environment()).items():
        typer.echo(f"{name:<15}{value}")
