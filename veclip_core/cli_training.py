"""`veclip`'s commands about trainings: the recipes, the plan of one, and the training itself."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from veclip_core.cli_options import ScaleOption, scale_of
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS
from veclip_core.training.recipe import LARGE, MIX, RECIPES, SAMPLE, Stated

if TYPE_CHECKING:
    from rich.table import Table

    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.plan import Plan

commands = typer.Typer()

PIPED_WIDTH = 150
"""Columns of a table that no terminal shows."""
LEGEND = (
    "[S] read in a public source   [D] computed from such values   [R] reconstructed or chosen here, not the paper's\n"
    "Fields that are not listed have one value everywhere, chosen here. `veclip train --scale S --dry-run` plans a training."
)


@commands.command("recipes")
def recipes() -> None:
    """The recipes beside what is published, each value with its standing."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    console.print(_table(*what_differs(), title="Recipes"))
    console.print(_table(*what_is_common(), title="In all recipes of the large scales"))
    console.print(LEGEND, markup=False, highlight=False)


def what_differs() -> tuple[list[str], list[list[str]]]:
    """Header and rows: a recipe a row, and of its fields those in which the large scales' recipes differ."""
    fields = [field for field in LARGE["3m"] if not _is_common(field)]
    rows = []
    for name, recipe in RECIPES.items():
        stated = LARGE.get(name, {})
        cells = [f"{_shown(getattr(recipe, field))} [{stated[field].standing if stated else 'R'}]" for field in fields]
        computed = "D" if stated and {stated["batch_size"].standing, stated["steps"].standing} == {"S"} else "R"
        samples = f"{recipe.steps * recipe.batch_size:,} [{computed}]"
        notes = [f"{field}: {stated[field].note}" for field in ("batch_size", "steps") if field in stated]
        scales = [scale.name for scale in SCALES.values() if scale.recipe == name]
        rows.append([name, ", ".join(scales) or "-", *cells, samples, "; ".join(notes) or "chosen here"])
    return ["recipe", "of scales", *fields, "samples seen", "from"], rows


def what_is_common() -> tuple[list[str], list[list[str]]]:
    """Header and rows: a field a row, with the sample's value, the large scales' and what is published."""
    rows = [["mix", "as an arm says", f"{_shown(MIX.value)} [{MIX.standing}]", "-", f"{MIX.note} (arm veclip)"]]
    for field, stated in LARGE["3m"].items():
        if _is_common(field):
            ours = f"{_shown(stated.value)} [{stated.standing}]"
            rows.append([field, _shown(getattr(SAMPLE, field)), ours, _published(stated), stated.note])
    rows.append(
        [
            "pictures",
            SCALES["sample"].source.name,
            "the first parts of the list VECLIP_URLS [R]",
            "Apple's web crawl WiT-300M [S]",
            "released are its URLs with captions, without AltTexts",
        ]
    )
    return ["field", "sample", "large scales", "published", "from"], rows


def _is_common(field: str) -> bool:
    return len({repr(fields[field].value) for fields in LARGE.values()}) == 1


def _published(stated: Stated) -> str:
    if stated.standing == "S":
        return "the same [S]"
    return f"{stated.published} [S]" if stated.published else "-"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {share:g}" for name, share in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_shown, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


@commands.command("train")
def train(
    scale: ScaleOption = "sample",
    arm: Annotated[str, typer.Option(help=f"What the model reads: {', '.join(ARMS)}.")] = "veclip",
    recipe: Annotated[
        str, typer.Option(help=f"Another recipe than the scale's own, kept as a trial: {', '.join(RECIPES)}.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer training steps, for a trial.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan: nothing is trained.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="Plan: GPUs side by side.")] = 1,
    device: Annotated[
        str, typer.Option(help='Plan: their name, such as "NVIDIA H100"; by default this machine\'s.')
    ] = "",
    device_hour_price: Annotated[
        float | None, typer.Option(min=0, help="Plan: what one costs an hour; by default VECLIP_DEVICE_HOUR_PRICE.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1, help="Plan: the share of their peak that is reached; by default a measured rate."
        ),
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Plan: samples at a time on a GPU, by a gradient cache.")
    ] = None,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Plan: weights and optimizer spread over the GPUs.")] = False,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Plan: activations computed twice instead of kept.")
    ] = False,
    precision: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(help="Plan: what they compute in; by default what a training takes, on a named device bf16."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Plan: with torch.compile.")] = False,
) -> None:
    """Train an arm of a scale, as `veclip run ARM` does, or with --dry-run say what it will take."""
    from veclip_core.pipeline.data import Chain
    from veclip_core.pipeline.plan import Machines, make_plan
    from veclip_core.pipeline.training import recipe_of

    if arm not in ARMS:
        raise typer.BadParameter(f"there is no arm {arm!r}; there are {', '.join(ARMS)}")
    if recipe and recipe not in RECIPES:
        raise typer.BadParameter(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    settings = Settings.from_environment()
    chain = Chain(settings, scale_of(scale))
    changed = overrides(steps, recipe if recipe != chain.scale.recipe else "")
    machines = Machines(
        devices=devices,
        device=device,
        device_hour_price=settings.device_hour_price if device_hour_price is None else device_hour_price,
        mfu=mfu,
        micro_batch=micro_batch,
        parallel="fsdp" if fsdp else "ddp",
        checkpoint_activations=checkpoint_activations,
        precision=precision,
        compile=compiled,
    )
    if not dry_run:
        if as_json or device_hour_price is not None or replace(machines, device_hour_price=0.0) != Machines():
            raise typer.BadParameter("--json, --devices and what else describes a plan go with --dry-run")
        train_one(chain, arm, seed, changed)
        return
    plan = make_plan(chain, arm, recipe_of(chain, arm, seed, changed), machines)
    typer.echo(json.dumps(plan.as_json(), indent=2) if as_json else plan_text(plan))


def overrides(steps: int | None, recipe: str = "") -> dict[str, Any]:
    """The fields in which a training is to differ from its scale's recipe; weights and seed are the arm's."""
    fields = {} if not recipe else RECIPES[recipe].model_dump(exclude={"weights", "seed"})
    return fields if steps is None else fields | {"steps": steps}


def train_one(chain: "Chain", arm: str, seed: int, changed: Mapping[str, Any]) -> None:
    """Train one arm and tell what came of it."""
    from veclip_core.pipeline.publishing import publish
    from veclip_core.pipeline.training import train_arm

    made, trained = train_arm(chain, arm, seed, overrides=changed)
    published = publish(chain, trained)
    told = {"steps": made.steps, "samples_per_s": made.samples_per_s, "final_loss": made.final_loss}
    typer.echo(json.dumps(told, indent=2))
    typer.echo(made.checkpoint)
    for address in published.exports.values():
        typer.echo(address)
    if published.version is not None:
        typer.echo(f"version {published.version} in MLflow's registry")


def plan_text(plan: "Plan") -> str:
    """A plan to read; what is an estimate says so, and from what."""
    memory = plan.memory
    parts = {
        "weights": memory.weights, "gradients": memory.gradients, "AdamW": memory.optimizer, "EMA": memory.ema,
        "copies": memory.copies, "activations": memory.activations, "loss": memory.loss,
    }  # fmt: skip
    lines = [
        ("training", f"{plan.arm}_{plan.scale}"),
        ("model", f"{plan.model}, {plan.parameters / 1e6:,.1f} million parameters ({plan.parameters_from})"),
        ("steps", f"{plan.steps:,} of {plan.batch_size:,} samples: {plan.samples:,} samples"),
        ("epochs", f"{plan.epochs:,.2f} over {plan.rows:,} samples ({plan.rows_from})"),
        ("text tokens", f"at most {plan.text_tokens:,}"),
        ("FLOPs", f"{plan.flops_per_sample / 1e9:,.1f} billion a sample, {plan.flops:.3g} in all (counted; texts as long as"
                  " the context, with what is computed twice)"),
        ("devices", f"{plan.devices} x {plan.device}"),
        ("memory", f"about {memory.total / 1e9:,.1f} GB a device (estimate, a tenth more for allocator and CUDA): "
                   + ", ".join(f"{name} {size / 1e9:,.2f}" for name, size in parts.items() if size)),
    ]  # fmt: skip
    if plan.hours is None:
        lines.append(("time", f"not projected: {plan.rate_from}"))
    else:
        time = f"{plan.hours:,.1f} hours" if plan.hours >= 1 else f"{60 * plan.hours:,.0f} minutes"
        lines.append(("time", f"about {time} at {plan.samples_per_s:,.0f} samples/s (estimate)"))
        lines.append(("", f"from {plan.rate_from}"))
        hours = f"{plan.hours * plan.devices:,.1f} device hours"
        money = (
            f"about {plan.cost:,.0f} for {hours} (estimate)" if plan.cost is not None else f"{hours}; no price is given"
        )
        lines.append(("money", money))
    return "\n".join(f"{name:<13}{text}" for name, text in lines)
