"""What a scale knows of copies of evaluation pictures among its training pictures, for the report."""

import json
from collections import Counter
from collections.abc import Sequence

from veclip_core.evaluation.report.inputs import Contamination
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.screening import LOOK, look_config, screen_config
from veclip_core.samples import EVALUATION_COPY
from veclip_core.screening.verdicts import SCREEN
from veclip_core.shards import Current

RULE = "near in the features of a frozen network and in 16 x 16 thumbnails (sources/near_duplicates.py)"


def of(chain: Chain, sets: Sequence[EvaluationSet]) -> list[Contamination]:
    """For each set: copies that were left out of training, or the command that looks for them.

    Where pictures were screened for copies, the verdicts of every shard that refused any are read."""
    manifest = chain.current("mix", "manifest")
    screened = _screened(chain, manifest)
    return [_of_set(chain, one, screened) for one in sets]


def _of_set(chain: Chain, evaluation_set: EvaluationSet, screened: dict[str, Counter[str]]) -> Contamination:
    name, pictures = evaluation_set.name, len(evaluation_set)
    if name in screened:
        copied = screened[name]
        looked = f"When pictures were screened: {RULE}. {len(copied):,} of the set's pictures had copies."
        return Contamination(name, pictures, 0, looked, left_out=copied.total())
    if name == "openmoji" and (left_out := _left_out_of_list(chain)) is not None:
        return Contamination(name, pictures, 0, f"When the sample's list was made: {RULE}.", left_out=left_out)
    command = (
        f"VECLIP_SCREEN=evaluation VECLIP_SCREEN_AGAINST=FOLDER veclip run screen --scale {chain.scale.name}, with the set's"
        f" pictures in a FOLDER called {name}"
    )
    return Contamination(name, pictures, None, command)


def _screened(chain: Chain, manifest: Current) -> dict[str, Counter[str]]:
    """Set to its copied pictures, each with how many pictures were refused as copies of it; empty where nobody looked."""
    if SCREEN not in manifest.inputs:
        return {}
    screen = manifest.input(chain.root, chain.source, SCREEN)
    if "evaluation" not in screen_config(screen).checks:
        return {}
    looks = {look["kind"]: look for look in look_config(manifest.input(chain.root, chain.source, LOOK))["checks"]}
    copied = {one["name"]: Counter[str]() for one in looks["evaluation"]["sets"]}
    for key, marker in screen.markers(manifest.shard_keys()).items():
        if not marker["errors"].get(EVALUATION_COPY):
            continue
        for row in screen.read_table(key, ["error", "copy_of"]).to_pylist():
            if row["error"] == EVALUATION_COPY:
                name, _, picture = row["copy_of"].partition("/")
                copied[name][picture] += 1
    return copied


def _left_out_of_list(chain: Chain) -> int | None:
    """Pictures that the sample's list leaves out as copies of the evaluation set's."""
    file = chain.settings.cache_folder / "world" / "world.json"
    if chain.source != "openclipart" or not file.exists():
        return None
    return int(json.loads(file.read_text())["pictures"]["copy_of_evaluation_picture"])
