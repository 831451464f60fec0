"""`veclip`'s commands about data: fetch what others released, look at a manifest, take something out."""

from typing import Annotated, Any

import typer

from veclip_core.cli_options import ScaleOption, scale_of
from veclip_core.settings import Settings

commands = typer.Typer()
manifest = typer.Typer(help="Look at manifests.", no_args_is_help=True)
commands.add_typer(manifest, name="manifest")


@commands.command("released-captions")
def released_captions() -> None:
    """Fetch the released caption files that VECLIP_RELEASED_CAPTIONS lists; what was cut off is gone on with."""
    from tqdm import tqdm

    from veclip_core.pipeline.released import fetch_captions, url_list_of

    settings = Settings.from_environment()
    bars: dict[str, tqdm[Any]] = {}

    def tell(name: str, done: int, whole: int | None) -> None:
        bar = bars.setdefault(name, tqdm(total=whole, desc=name, unit="B", unit_scale=True))
        bar.update(done - bar.n)

    fetched = fetch_captions(settings, tell)
    for bar in bars.values():
        bar.close()
    for one in fetched:
        typer.echo(f"{one.sha256}  {one.bytes:>15,}  {one.uri}")
    typer.echo(f"VECLIP_URLS='{url_list_of(settings)}' VECLIP_CAPTIONER=released reads them")


@manifest.command("stats")
def manifest_stats_(scale: ScaleOption = "sample") -> None:
    """Samples, pictures, texts of each column, how the VeCaps came to be, what was left out."""
    from veclip_core.mixing.manifest_stats import as_text, manifest_stats
    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.manifests import address_of_manifest

    typer.echo(as_text(manifest_stats(address_of_manifest(Chain(Settings.from_environment(), scale_of(scale))))))


@commands.command()
def adopt(
    tars: Annotated[
        str, typer.Argument(help="WebDataset tars: a folder, or a pattern such as 's3://bucket/{00000..00099}.tar'.")
    ],
    scale: ScaleOption = "3m",
    csv: Annotated[
        str,
        typer.Option(
            help="A table of AltTexts by key or URL (csv, tsv, jsonl, parquet), in place of those in the tars."
        ),
    ] = "",
) -> None:
    """Take tars of img2dataset, NeMo Curator or others for a scale's list and shards. Nothing is downloaded or copied."""
    from veclip_core.pipeline.data import Chain

    chosen = scale_of(scale)
    if chosen.name in ("sample", "own"):
        raise typer.BadParameter(f"the scale {chosen.name} has pictures of its own: adopt them for another, such as 3m")
    listed, linked = Chain(Settings.from_environment(), chosen).adopt(tars, csv)
    lost = ", ".join(f"{reason} {count:,}" for reason, count in listed.errors.items())
    typer.echo(f"{linked.rows_ok:,} pictures in {linked.shards:,} tars are raw_urls_{scale} and shards_{scale} now")
    if lost:
        typer.echo(f"left out: {lost}", err=True)
    typer.echo(f"next: dagster asset materialize --select vecap_{scale}")


@commands.command()
def remove(
    listed: Annotated[
        str,
        typer.Argument(
            metavar="LIST", help="A text file, local or remote: a URL, a domain, a url_id or a sample_id a line."
        ),
    ],
    scale: ScaleOption = "sample",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Take pictures and texts out of everything stored of a scale's source, without making anything anew. Can't be undone."""
    from veclip_core.mixing.removals import read_removals
    from veclip_core.pipeline.removal import remove as take_out

    settings, source = Settings.from_environment(), scale_of(scale).source.name
    removals = read_removals(listed)
    what = f"{len(removals.ids):,} URLs and ids and {len(removals.domains.domains):,} domains"
    if not yes:
        typer.confirm(f"Take what {what} name out of {settings.root}/{source}, for ever?", abort=True)
    done = take_out(settings.root, source, removals)
    typer.echo(f"{done.urls:,} URLs: {done.pictures:,} pictures and {done.rows:,} rows of tables are blank now")
    for tar in done.elsewhere:
        typer.echo(f"not changed, because it lies elsewhere: {tar}", err=True)
    typer.echo(
        f"Make the manifest anew with VECLIP_REMOVED={listed}, and train on that one. Trained models, reports and the decoded"
        f" pictures of {settings.cache_folder} still hold what they read."
    )
