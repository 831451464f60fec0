"""`veclip`'s commands about data: fetch what others released, look at a manifest, take something out."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veclip_core.cli_options import ScaleOption, scale_of
from veclip_core.settings import Settings

if TYPE_CHECKING:
    from veclip_core.pipeline.data import Chain
    from veclip_core.samples import PartRange

FILTERING_ASSETS = ("dfn_scores", "dfn_manifest", "dfn_mixture")

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
def manifest_stats_(
    scale: ScaleOption = "sample",
    dfn: Annotated[bool, typer.Option("--dfn", help="Of what the filtering network keeps.")] = False,
) -> None:
    """Samples, pictures, texts of each column, how the VeCaps came to be, what was left out."""
    from veclip_core.mixing.manifest_stats import as_text, manifest_stats
    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.manifests import address_of_manifest

    chain = Chain(Settings.from_environment(), scale_of(scale))
    typer.echo(as_text(manifest_stats(address_of_manifest(chain, "dfn_manifest" if dfn else "manifest"))))


@manifest.command("card")
def manifest_card(
    scale: ScaleOption = "sample",
    dfn: Annotated[bool, typer.Option("--dfn", help="Of what the filtering network keeps.")] = False,
) -> None:
    """The data card: sources and terms, what each stage lost and why, stand-ins. It lies beside the manifest."""
    from veclip_core import storage
    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.data_card import card_address
    from veclip_core.pipeline.manifests import address_of_manifest
    from veclip_core.shards import NotMadeYet

    chain = Chain(Settings.from_environment(), scale_of(scale))
    asset = "dfn_manifest" if dfn else "manifest"
    try:
        typer.echo(storage.read_bytes(card_address(address_of_manifest(chain, asset))).decode())
    except FileNotFoundError:
        raise NotMadeYet(
            f"{asset}_{scale} was made by an older version, without a card: run `veclip run {asset} --scale {scale}` again"
        ) from None


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
def export(
    scale: ScaleOption = "sample",
    text: Annotated[
        str,
        typer.Option(
            help="The .txt of each sample: a column (alt, vec, vecap, ...), or `drawn`: AltText or VeCap, as likely."
        ),
    ] = "vecap",
    dfn: Annotated[
        bool, typer.Option("--dfn", help="What the filtering network keeps (its texts are AltTexts).")
    ] = False,
    parts: Annotated[int | None, typer.Option(min=1, help="Only the first so many parts.")] = None,
) -> None:
    """Write a manifest as WebDataset tars (.jpg, .txt, and .json with every text) for open_clip's trainer and others."""
    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.export import make_export
    from veclip_core.training.recipe import MIXED

    chain = Chain(Settings.from_environment(), scale_of(scale))
    weights = MIXED if text == "drawn" else {text: 1.0}
    exported = make_export(chain, weights, "dfn_manifest" if dfn else "manifest", parts)
    typer.echo(f"{exported.report.rows_ok:,} samples in {exported.tars}")
    typer.echo(
        f"python -m open_clip_train.main --dataset-type webdataset --train-data '{exported.tars}' --train-num-samples"
        f" {exported.report.rows_ok} ... trains on them"
    )


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
        f"Make manifest, and where they are used dfn_manifest and dfn_mixture, anew with VECLIP_REMOVED={listed}, and train on"
        " those. Trained models and reports still hold what they read. So does the cache, until you delete the decoded pictures and"
        f" copied tars in {settings.cache_folder / 'pictures'} and the mapped manifests in {settings.cache_folder / 'manifests'}."
    )


def run_filtering(chain: "Chain", asset: str, first: int | None, only: "PartRange | None") -> None:
    """`veclip run` of one of `FILTERING_ASSETS`."""
    from veclip_core import storage
    from veclip_core.pipeline.filtering import kept_by, make_scores, scores_of
    from veclip_core.pipeline.manifests import make_dfn_manifest
    from veclip_core.pipeline.mixtures import make_mixture

    if asset != "dfn_scores" and first is not None:
        raise typer.BadParameter(f"--parts: {asset} is of all parts that are scored; `dfn_scores` takes a limit")
    if asset == "dfn_mixture":
        mixture, uri = make_mixture(chain)
        for source in mixture.sources:
            typer.echo(f"{source.rows:>15,} rows, weight {source.weight:g}: {storage.shown(source.manifest)}")
        typer.echo(f"{mixture.rows_per_epoch:>15,} rows an epoch\n{uri}")
    elif asset == "dfn_manifest":
        report, uri = make_dfn_manifest(chain)
        typer.echo(f"{json.dumps(report.metrics(), indent=2)}\n{uri}")
    else:
        typer.echo(json.dumps(make_scores(chain, first, only).metrics(), indent=2))
        if only is None:
            _, scores = scores_of(chain)
            least = kept_by(scores, chain.settings).least
            kept = f"{scores.at_least(least):,} of {scores.total:,}" if least is not None else "all"
            typer.echo(f"kept from a score of {least} on: {kept}")
