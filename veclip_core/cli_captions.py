"""`veclip`'s commands about captions: look at them, make them of one's own pictures, tell what they will cost."""

from pathlib import Path
from typing import Annotated

import typer

from veclip_core.captioning.captioners import CAPTIONERS
from veclip_core.captioning.styles import styles
from veclip_core.cli_options import ScaleOption, scale_of
from veclip_core.settings import Settings

commands = typer.Typer()
captions = typer.Typer(help="Look at captions.", no_args_is_help=True)
commands.add_typer(captions, name="captions")


@captions.command("show")
def captions_show(
    scale: ScaleOption = "sample",
    count: Annotated[int, typer.Option(help="How many samples.")] = 10,
    status: Annotated[str | None, typer.Option(help="Only of one status: fused, concatenated, vec or alt.")] = None,
    style: Annotated[str, typer.Option(help=f"Further captions made with VECLIP_STYLES: {', '.join(styles())}.")] = "",
) -> None:
    """AltText, VeC and VeCap of some samples, with the reason where the VeCap is not the language model's."""
    from veclip_core.captioning.preview import selected
    from veclip_core.pipeline.captions import captions_of
    from veclip_core.pipeline.data import Chain

    chain = Chain(Settings.from_environment(), scale_of(scale))
    current = captions_of(chain, style)
    sets = {name: current.input(chain.root, chain.source, name) for name in ("download", "fuse", "select")}
    shown = 0
    for key in current.shard_keys():
        if shown >= count:
            break
        if key not in sets["select"].markers([key]):
            continue
        for look in selected(sets["select"], sets["download"], key, count - shown, fuse=sets["fuse"], status=status):
            shown += 1
            why = f"  ({look.reason})" if look.reason else ""
            typer.echo(f"{look.sample_id}  {look.status}{why}")
            typer.echo(f"  AltText  {look.alt_text}\n  VeC      {look.vec}\n  VeCap    {look.vecap}")
            if look.rejected:
                typer.echo(f"  refused  {look.rejected}")


@commands.command()
def caption(
    pictures: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures, or WebDataset tars: a folder or pattern, local or remote (s3://...)."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(help="Where tables, page and work go; by default `captions` beside a local folder's pictures."),
    ] = None,
    table: Annotated[
        str,
        typer.Option(
            "--table", "--csv", help="A csv, tsv, jsonl or parquet with a column of files and one of AltTexts."
        ),
    ] = "",
    captioner: Annotated[str, typer.Option(help=f"One of {', '.join(CAPTIONERS)}.")] = "",
    style: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A further caption of every sample, a column of its own: {', '.join(styles())}. May be repeated."
        ),
    ] = None,
) -> None:
    """Caption your own pictures: a parquet table and a page to look at. Run again, it goes on where it stopped.

    The AltText of cat.jpg is the table's, or what cat.txt says; of a tar's sample its txt or json. Without one the description
    stands.
    """
    from veclip_core.pipeline.own import caption as caption_own

    settings = Settings.from_environment()
    if captioner:
        settings = settings.model_copy(update={"captioner": captioner})
    if style:
        settings = settings.model_copy(update={"styles": tuple(name for one in style for name in one.split(","))})
    if out is None:
        if not Path(pictures).is_dir():
            raise typer.BadParameter("say with --out where the captions go")
        out = str(Path(pictures).resolve() / "captions")
    report = caption_own(settings, pictures, table, out if "://" in out else str(Path(out).resolve()))
    typer.echo(f"{report.captioned:,} of {report.rows:,} rows captioned; errors: {report.errors or 'none'}")
    if report.stand_in:
        typer.echo(
            "The describer was the sample's stand-in, a tagger of emoji drawings that is wrong more often than not: "
            "choose another with --captioner, or VECLIP_DESCRIBER."
        )
    typer.echo(f"{report.table}\n{report.page}")
    typer.echo(f"To look at some here: VECLIP_ROOT={out} veclip captions show --scale own")


@commands.command()
def estimate(
    scale: ScaleOption = "sample",
    device_hour_price: Annotated[
        float | None, typer.Option(min=0, help="What one GPU costs an hour; by default VECLIP_DEVICE_HOUR_PRICE.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="GPUs working side by side.")] = 1,
    rates_of: Annotated[
        str,
        typer.Option(
            help="A scale whose captions are (partly) made with the same models, to take the rates from; by default this one."
        ),
    ] = "",
    success: Annotated[
        float, typer.Option(min=0, max=1, help="Share of URLs that give a picture, while none is downloaded.")
    ] = 0.7,
) -> None:
    """Hours and money for a scale's captions, at rates measured here: of captions made before, a canary or `veclip benchmark`."""
    from veclip_core.pipeline.canary import costs_table
    from veclip_core.pipeline.rates import estimate_scale

    settings = Settings.from_environment()
    if device_hour_price is not None:
        settings = settings.model_copy(update={"device_hour_price": device_hour_price})
    projected = estimate_scale(settings, scale_of(scale), scale_of(rates_of or scale), devices, success)
    rows = costs_table(projected)
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]]
    for row in (dict.fromkeys(rows[0]), *rows):
        cells = [str(value if value is not None else name) for name, value in row.items()]
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))
    typer.echo(f"Rates: {projected.measured_on}.")


@commands.command()
def benchmark(
    pictures: Annotated[int, typer.Option(min=8, help="Pictures to describe.")] = 256,
    pairs: Annotated[int, typer.Option(min=8, help="Pairs of AltText and VeC to fuse.")] = 256,
    scale: ScaleOption = "sample",
) -> None:
    """Measure a scale's captioner on this machine, on made-up pictures and pairs, and add it to the table that `estimate` reads."""
    from veclip_core.pipeline.rates import measure_rates

    typer.echo(measure_rates(Settings.from_environment(), scale_of(scale), pictures, pairs))
