"""`veclip evaluate` and `veclip reproduce`: scores of any models on any sets, and those of the paper's checkpoints."""

import json
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from veclip_core import storage
from veclip_core.settings import Settings

if TYPE_CHECKING:
    from veclip_core.pipeline.models_evaluation import MadeEvaluation
    from veclip_core.pipeline.reproduction import Given

commands = typer.Typer()

EXAMPLES = """
Zero-shot scores of any models on any sets, with intervals, and a page that shows them.

Your own pictures: a csv beside them with the columns `file` and `caption` (several rows of a file are its captions), or a folder of
folders, one a class:

\b
  veclip evaluate --model veclip_sample --set mine=photos/captions.csv
  veclip evaluate --model openai/clip-vit-base-patch16 --set photos-by-class

A released checkpoint beside another model:

\b
  veclip evaluate --model veclip_b16_12m.zip \\
      --model clip=openai/clip-vit-base-patch16 --baseline clip \\
      --set coco=/data/wds_mscoco_captions

Pictures and texts are embedded once for each model and set: a second evaluation reads what the first kept, and one that was stopped
goes on.
"""

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME or NAME=PATH of coco, flickr30k, imagenet, imagenetv2; may be repeated."),
]


@commands.command("evaluate", help=EXAMPLES)
def evaluate(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            metavar="[NAME=]MODEL",
            help="A folder (transformers' format, open_clip's, a checkpoint of ours, an unpacked release), a released zip's path or"
            " address, a hub id (owner/name; hf-hub:owner/name in open_clip's format), or a training's asset such as veclip_sample."
            " May be repeated.",
        ),
    ],
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="[NAME=]SET",
            help="A set of the catalogue (VECLIP_EVALUATION_SETS), openmoji (the sample's), or a folder, file or address. May be"
            " repeated.",
        ),
    ],
    baseline: Annotated[
        str,
        typer.Option(help="The model whose scores are subtracted from the others'; by default the first of several."),
    ] = "",
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of trained assets, 0 by default; repeated: several trainings of each."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the page and results in VECLIP_ROOT/reports.")] = "",
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A text with {} in a class's place, as in 'a photo of a {}.', for sets that bring none of their own, neither in a"
            " file nor in the catalogue; by default open_clip's simple ones, and OpenAI's 80 for a set whose name begins with"
            " imagenet. The sample's set keeps those of drawings. May be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, and nothing else.")] = False,
) -> None:
    from veclip_core.pipeline.models import models_named
    from veclip_core.pipeline.models_evaluation import (
        Asked,
        config_for,
        evaluate_models,
        report_name,
        sets_named,
    )
    from veclip_core.pipeline.report_names import as_file_name

    settings = Settings.from_environment()
    models = models_named(model, settings, tuple(dict.fromkeys(seed or [0])))
    sets = sets_named(set_, settings, template or ())
    names = list(dict.fromkeys(one.candidate.name for one in models))
    options = {
        "--model": model,
        "--set": set_,
        "--baseline": [baseline] if baseline else [],
        "--template": template or [],
    }
    options |= {"--seed": [str(one) for one in seed or []], "--name": [name] if name else []}
    words = [word for option, values in options.items() for value in values for word in (option, _shown(value))]
    made = evaluate_models(
        settings,
        Asked(
            models,
            sets,
            as_file_name(name) if name else report_name(models, sets),
            f"{', '.join(names)} on {', '.join(one.name for one in sets)}",
            [shlex.join(["veclip", "evaluate", *words])],
            config_for(sets, template or ()),
            baseline or (names[0] if len(names) > 1 else None),
        ),
    )
    if as_json:
        typer.echo(json.dumps(made.results, indent=2))
        return
    _tell(made)


def _shown(told: str) -> str:
    """What was told, as others may read it on the page: an address without its secrets."""
    name, sign, what = told.partition("=")
    return f"{name}={storage.shown(what)}" if sign and not {"/", ":"} & set(name) else storage.shown(told)


@commands.command("reproduce")
def reproduce(set_: SetOption = None) -> None:
    """The paper's released checkpoints on the paper's sets, beside the published rows: the same within 0.3 points?

    Evaluates what is given: checkpoints by VECLIP_RELEASED_CHECKPOINTS (a folder of zips, or paths and addresses with commas
    between) or in VECLIP_ROOT/released/checkpoints; sets by --set, VECLIP_EVALUATION_SETS or in VECLIP_ROOT/released/sets. Names
    the rest with the command that gets it. The texts need T5's tokenizer (VECLIP_T5_TOKENIZER). Exit code 1 when a score does not
    hold.
    """
    from veclip_core.pipeline import reproduction

    settings = Settings.from_environment()
    given = reproduction.given(settings, set_ or ())
    if not given.suffices:
        _tell_missing(given)
        what = [name for name, found in (("checkpoint", given.checkpoints), ("set", given.sets)) if not found]
        typer.echo(f"\nNothing was evaluated: no {' and no '.join(what)} of the paper is given.")
        return
    made = reproduction.reproduce(given, settings)
    _tell(made)
    _tell_missing(given)
    raise typer.Exit(0 if made.holds else 1)


def _tell(made: "MadeEvaluation") -> None:
    from veclip_core.evaluation.table import results_text, verdicts_text

    typer.echo(results_text(made.results))
    if made.verdicts:
        typer.echo(f"\n{verdicts_text(made.verdicts)}")
    if made.results["partial"]:
        typer.echo("\nA trial: a training is on part of the data, or with fewer steps than the recipe.")
    typer.echo(f"\n{made.report_uri}\n{made.results_uri}")


def _tell_missing(given: "Given") -> None:
    from veclip_core.pipeline.reproduction import STANDING

    if given.missing:
        typer.echo(f"\nNot given, with the command that gets it. {STANDING}")
    for one in given.missing:
        typer.echo(f"  {one.name}{f' ({one.listed})' if one.listed else ''}\n    {one.command}")
