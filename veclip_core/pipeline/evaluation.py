"""`eval_report_S`: both trained models on the evaluation set, their scores in MLflow, `results.json` and `report.html`."""

import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veclip_core import storage
from veclip_core.captioning.preview import CaptionPreview, selected
from veclip_core.evaluation.evaluate import Evaluation, compare, evaluate
from veclip_core.evaluation.report.inputs import CaptionExample, HowTo, LossCurve
from veclip_core.evaluation.report.page import write_report
from veclip_core.evaluation.report.retrieved import retrieval_examples
from veclip_core.evaluation.sets import read_openmoji
from veclip_core.pipeline import data_card
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import ARMS, Trained, tracker_of, trained
from veclip_core.shards import NotMadeYet
from veclip_core.training.export import load_for_evaluation

logger = logging.getLogger(__name__)

EXAMPLES_OF_STATUS = {"fused": 8, "concatenated": 5, "vec": 1, "alt": 1}


@dataclass(frozen=True)
class MadeReport:
    """What the report asset made."""

    results: Mapping[str, Any]
    results_uri: str
    report_uri: str
    run_ids: Mapping[str, str]
    """Model and seed to the MLflow run that holds its losses and its scores."""
    partial: bool


def make_report(chain: Chain, seeds: Sequence[int] = (0,)) -> MadeReport:
    """Evaluate every arm and seed, compare, publish.

    Raises:
        NotMadeYet: when a training is missing.
        EvaluationSetError: when the evaluation set is.
    """
    trainings = [trained(chain, arm, seed) for seed in seeds for arm in ARMS]
    require_comparable(trainings)
    require_current(chain, trainings)
    evaluation_set = read_openmoji(chain.settings.cache_folder / "world" / "openmoji")
    folder = chain.settings.cache_folder / "evaluations"
    evaluations = []
    for training in trainings:
        model = load_for_evaluation(training.checkpoint)
        evaluations.append(
            evaluate(
                model, training.arm, evaluation_set, seed=training.seed, checkpoint=_digest(training), folder=folder
            )
        )
    results = compare(evaluations)
    results["trainings"] = [
        {
            "model": one.arm,
            "seed": one.seed,
            "checkpoint": one.checkpoint,
            "manifest": one.manifest_digest,
            "run_id": one.run_id,
        }
        for one in trainings
    ]
    results["partial"] = any(one.partial for one in trainings)
    uri = storage.join(chain.root, chain.source, "report", results["identity"][:16])
    with tempfile.TemporaryDirectory() as made:
        page = write_report(
            results,
            Path(made) / "report.html",
            curves=[_curve(one) for one in trainings],
            caption_examples=_caption_examples(chain),
            data_card=data_card.of(chain),
            captioner_accuracy=data_card.captioner_accuracy(chain),
            howto=HowTo(_commands(chain), _facts(chain, trainings)),
            retrieval_examples=retrieval_examples(*_pair(evaluations, seeds[0])),
            scale=chain.scale.name,
        )
        _track(chain, trainings, evaluations, page)
        storage.write_json(storage.join(uri, "results.json"), results)
        storage.write_bytes(storage.join(uri, "report.html"), page.read_bytes())
        # Where a person looks for it, whatever its identity.
        storage.write_bytes(storage.join(chain.root, "reports", f"{chain.scale.name}.html"), page.read_bytes())
        storage.write_json(storage.join(chain.root, "reports", f"{chain.scale.name}.json"), results)
    return MadeReport(
        results,
        storage.join(uri, "results.json"),
        storage.join(uri, "report.html"),
        {f"{one.arm} seed {one.seed}": one.run_id for one in trainings if one.run_id},
        bool(results["partial"]),
    )


def require_comparable(trainings: Sequence[Trained]) -> None:
    """Raises NotMadeYet where the arms differ in more than their captions, naming what to train again."""
    wanted = trainings[-1]
    for one in trainings:
        for what in ("manifest_digest", "steps", "batch_size", "parameters", "precision"):
            if one.report[what] != wanted.report[what]:
                raise NotMadeYet(
                    f"{one.arm}_{one.scale} (seed {one.seed}) and {wanted.arm}_{wanted.scale} (seed {wanted.seed}) can't be"
                    f" compared: {what} is {one.report[what]} and {wanted.report[what]}. Train both again with the same settings:"
                    f" `dagster asset materialize --select {one.arm}_{one.scale},{wanted.arm}_{wanted.scale}`."
                )


def require_current(chain: Chain, trainings: Sequence[Trained]) -> None:
    """Raises NotMadeYet where the manifest is no more the one that was trained on: the report would tell of another."""
    current = chain.current("mix", "manifest").digest
    for one in trainings:
        if one.manifest_digest != current:
            raise NotMadeYet(
                f"{one.arm}_{one.scale} (seed {one.seed}) was trained on another manifest ({one.manifest_digest[:12]}) than the"
                f" current one ({current[:12]}). Train again (`dagster asset materialize --select {one.arm}_{one.scale}`), or make"
                f" the manifest as it was then (`--select manifest_{one.scale}`)."
            )


def _digest(training: Trained) -> str:
    """Of the checkpoint's files, as its marker states it."""
    return str(storage.read_json(f"{training.checkpoint}.success.json")["sha256"])


def _pair(evaluations: Sequence[Evaluation], seed: int) -> tuple[Evaluation, Evaluation]:
    of_seed = {evaluation.model: evaluation for evaluation in evaluations if evaluation.seed == seed}
    return of_seed["clip"], of_seed["veclip"]


def _track(chain: Chain, trainings: Sequence[Trained], evaluations: Sequence[Evaluation], page: Path) -> None:
    """Scores go into the run of their training: losses and scores in one row of MLflow's compare page."""
    for training, evaluation in zip(trainings, evaluations, strict=True):
        if training.run_id is None:
            continue
        tracker = tracker_of(chain)
        tracker.start_run(f"veclip {chain.scale.name}", training.arm, run_id=training.run_id)
        tracker.log_metrics({f"{row['set']}/{row['split']}/{row['metric']}": row["value"] for row in evaluation.scores})
        tracker.log_artifact(page)
        tracker.finish()


def _curve(training: Trained) -> LossCurve:
    history = training.report["history"]
    return LossCurve(
        training.arm, training.seed, [int(point["step"]) for point in history], [point["loss"] for point in history]
    )


def _caption_examples(chain: Chain) -> list[CaptionExample]:
    """Samples of every status from the first shard, in the order of their ids, which is a random one."""
    current = chain.current("mix", "manifest")
    sets = {name: current.input(chain.root, chain.source, name) for name in ("download", "fuse", "select")}
    key = min(sets["select"].markers(current.shard_keys()))
    looks: list[CaptionPreview] = []
    for status, count in EXAMPLES_OF_STATUS.items():
        looks += selected(sets["select"], sets["download"], key, count, fuse=sets["fuse"], status=status)
    return [
        CaptionExample(look.picture, look.alt_text, look.vec, look.vecap, look.status, look.reason, look.rejected)
        for look in looks
    ]


def _commands(chain: Chain) -> list[str]:
    if chain.scale.name == "sample":
        return ["make demo"]
    name = chain.scale.name
    return ["source env.sh", f"dagster asset materialize --select 'group:scale_{name}'"]


def _facts(chain: Chain, trainings: Sequence[Trained]) -> dict[str, str]:
    manifest = chain.current("mix", "manifest")
    facts = {
        "machine": f"{platform.machine()}, {chain.settings.threads} threads, {platform.system()}",
        "manifest": f"{manifest.rows_ok:,} samples, digest {manifest.digest[:16]}",
        "recipe": str(trainings[0].report["identity"])[:16] + " and " + str(trainings[-1].report["identity"])[:16],
        "precision": str(trainings[0].report["precision"]),
    }
    for one in trainings:
        seconds, rate = one.report["seconds"], one.report["samples_per_s"]
        facts[f"training of {one.arm}, seed {one.seed}"] = f"{seconds:.0f} s, {rate:.0f} samples/s"
    return facts
