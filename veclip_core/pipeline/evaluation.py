"""`eval_report_S`: both trained models on the evaluation set, their scores in MLflow, `results.json` and `report.html`."""

import logging
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from veclip_core import storage
from veclip_core.captioning.preview import CaptionPreview, drawn
from veclip_core.config import digest_of
from veclip_core.evaluation.evaluate import Evaluation, compare
from veclip_core.evaluation.report.inputs import CaptionExample, Captions, Chart, HowTo, LossCurve
from veclip_core.evaluation.report.page import write_report
from veclip_core.evaluation.report.retrieved import retrieval_examples
from veclip_core.evaluation.sets import read_openmoji
from veclip_core.networks import NetworkConfig
from veclip_core.pipeline import contamination, data_card
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.score_tracking import track_scores
from veclip_core.pipeline.scoring import Candidate, score
from veclip_core.pipeline.tracked_runs import with_runs
from veclip_core.pipeline.trained import Trained, how_to_train, trained
from veclip_core.pipeline.training import manifest_of
from veclip_core.shards import Current, NotMadeYet, ShardSet, Totals
from veclip_core.training.arms import (
    BASELINE,
    CONTROL_ASSETS,
    FIRST_LOOK,
    TRAINED_AT_EVERY_SCALE,
    Comparison,
    arm_named,
)

logger = logging.getLogger(__name__)

Draw = Callable[[Mapping[str, Any]], Sequence[Chart]]
RANDOM_ROWS, CONTROL_ROWS, EXAMPLES_OF_REASON = 50, 5, 2


@dataclass(frozen=True)
class MadeReport:
    """What the report asset made."""

    results: Mapping[str, Any]
    results_uri: str
    report_uri: str
    page_uri: str
    """The same page where a person looks for it; the next report of that name takes its place."""
    run_ids: Mapping[str, str]
    """Model and seed to the MLflow run that holds its losses and its scores."""
    partial: bool


def make_report(
    chain: Chain,
    comparison: Comparison = FIRST_LOOK,
    name: str | None = None,
    *,
    trainings: Sequence[Trained] | None = None,
    draw: Draw = lambda results: (),
    command: str | None = None,
    sweep: str | None = None,
) -> MadeReport:
    """Evaluate every arm and seed of the comparison, compare, publish.

    Args:
        name: under which the page is found in `reports`; the scale's by default.
        trainings: those of the comparison; by default what is kept of each arm and seed.
        draw: further figures for the page, from the results.
        command: that makes this report, where the usual ones don't.
        sweep: whose trainings these are; its figure can then be drawn of the results too.

    Raises:
        NotMadeYet: when a training is missing.
        EvaluationSetError: when the evaluation set is.
    """
    if trainings is None:
        trainings = [trained(chain, arm, seed) for seed in comparison.seeds for arm in comparison.arms]
    require_comparable(trainings)
    require_current(chain, trainings)
    trainings, in_reach = with_runs(chain, trainings)
    evaluation_set = read_openmoji(chain.settings.cache_folder / "world" / "openmoji")
    candidates = [candidate_of(training) for training in trainings]
    evaluations = score(chain.settings, candidates, [evaluation_set])
    results = compare(
        evaluations,
        baseline=BASELINE,
        headline=comparison.contrasts,
        headline_metrics=comparison.metrics,
        headline_splits=comparison.splits,
    )
    results["trainings"] = [
        {
            "model": one.arm,
            "seed": one.seed,
            "checkpoint": one.checkpoint,
            "revision": candidate.network.revision,
            "manifest": one.manifest_digest,
            "run_id": one.run_id,
        }
        for one, candidate in zip(trainings, candidates, strict=True)
    ]
    results["partial"] = any(one.partial for one in trainings)
    if sweep is not None:
        results["sweep"] = sweep
    copies = contamination.of(chain, [evaluation_set])
    results["contamination"] = [asdict(one) for one in copies]
    uri = storage.join(chain.root, chain.source, "report", results["identity"][:16])
    pair = _pair(evaluations, comparison.seeds[0])
    with tempfile.TemporaryDirectory() as made:
        page = write_report(
            results,
            Path(made) / "report.html",
            curves=[_curve(one) for one in trainings],
            captions=_captions(chain, comparison),
            data_card=data_card.of(chain),
            captioner_accuracy=data_card.captioner_accuracy(chain),
            howto=HowTo([command] if command else _commands(chain, comparison), _facts(chain, trainings)),
            retrieval_examples=retrieval_examples(*pair) if pair else None,
            scale=chain.scale.name,
            contamination=copies,
            charts=draw(results),
        )
        if in_reach:
            for training, evaluation in zip(trainings, evaluations, strict=True):
                track_scores(chain.settings, training, [evaluation], page, storage.join(uri, "report.html"))
        storage.write_json(storage.join(uri, "results.json"), results)
        storage.write_bytes(storage.join(uri, "report.html"), page.read_bytes())
        # Where a person looks for it, whatever its identity.
        name = name or chain.scale.name
        page_uri = storage.join(chain.root, "reports", f"{name}.html")
        storage.write_bytes(page_uri, page.read_bytes())
        storage.write_json(storage.join(chain.root, "reports", f"{name}.json"), results)
    return MadeReport(
        results,
        storage.join(uri, "results.json"),
        storage.join(uri, "report.html"),
        page_uri,
        {f"{one.arm} seed {one.seed}": one.run_id for one in trainings if one.run_id},
        bool(results["partial"]),
    )


def candidate_of(training: Trained) -> Candidate:
    """A training of ours as a model to be scored, known by the digest of its weights."""
    digest = digest_of(storage.read_json(f"{training.checkpoint}.success.json")["sha256"])
    network = NetworkConfig(
        kind="checkpoint", model=f"{training.arm}_{training.scale}", revision=digest, folder=training.checkpoint
    )
    return Candidate(training.arm, network, training.seed)


def require_comparable(trainings: Sequence[Trained]) -> None:
    """Raises NotMadeYet where the arms differ in more than their captions, naming what to train again."""
    wanted = trainings[-1]
    for one in trainings:
        for what in ("steps", "batch_size", "parameters", "precision"):
            if one.report[what] != wanted.report[what]:
                raise NotMadeYet(
                    f"{one.arm}_{one.scale} (seed {one.seed}) and {wanted.arm}_{wanted.scale} (seed {wanted.seed}) can't be"
                    f" compared: {what} is {one.report[what]} and {wanted.report[what]}. Train both again with the same settings:"
                    f" {how_to_train(one, wanted)}."
                )


def require_current(chain: Chain, trainings: Sequence[Trained]) -> None:
    """Raises NotMadeYet where a manifest is no more the one that was trained on, or the control's is not made from the same
    stages as the others': the report would tell of another."""
    main = chain.current("mix", "manifest")
    for one in trainings:
        current = manifest_of(chain, one.arm)
        if one.manifest_digest != current.digest:
            raise NotMadeYet(
                f"{one.arm}_{one.scale} (seed {one.seed}) was trained on another manifest ({one.manifest_digest[:12]}) than the"
                f" current one ({current.digest[:12]}). Train again ({how_to_train(one)}), or"
                f" make the manifest as it was then (`--select manifest_{one.scale}`)."
            )
        # A style's captions in one of the manifests change no row of it.
        shared = main.inputs.keys() & current.inputs.keys() - {"mix"}
        same_captions = all(current.inputs[stage] == main.inputs[stage] for stage in shared)
        if not same_captions or (current.rows_ok, current.parts) != (main.rows_ok, main.parts):
            control = ",".join(f"{asset}_{one.scale}" for asset in CONTROL_ASSETS)
            raise NotMadeYet(
                f"the manifest that {one.arm}_{one.scale} reads has other captions or other rows ({current.rows_ok:,}) than"
                f" manifest_{one.scale} ({main.rows_ok:,}). Make both again (`dagster asset materialize --select"
                f" manifest_{one.scale},{control}`), then train."
            )


def _pair(evaluations: Sequence[Evaluation], seed: int) -> tuple[Evaluation, Evaluation] | None:
    """The two models of the question, where both were evaluated."""
    of_seed = {evaluation.model: evaluation for evaluation in evaluations if evaluation.seed == seed}
    return (of_seed["clip"], of_seed["veclip"]) if {"clip", "veclip"} <= of_seed.keys() else None


def _curve(training: Trained) -> LossCurve:
    history = training.report["history"]
    return LossCurve(
        training.arm, training.seed, [int(point["step"]) for point in history], [point["loss"] for point in history]
    )


def _captions(chain: Chain, comparison: Comparison) -> Captions:
    """Random rows, examples of every reason, and what the check accepted and refused."""
    current = chain.current("mix", "manifest")
    sets = {name: current.input(chain.root, chain.source, name) for name in ("download", "fuse", "select")}
    keys = sorted(sets["select"].markers(current.shard_keys()))
    lot = drawn(sets["select"], sets["download"], sets["fuse"], keys, RANDOM_ROWS, EXAMPLES_OF_REASON)
    fused = Totals.of(sets["fuse"].markers(current.shard_keys()).values())
    control: dict[str, float] | None = None
    control_rows: list[CaptionPreview] = []
    if any(arm_named(arm).manifest == "manifest_control" for arm in comparison.arms):
        made = chain.current("select", "vecap_control")
        shuffled = Totals.of(made.input(chain.root, chain.source, "shuffle").markers(made.shard_keys()).values())
        select, fuse = made.shard_set(chain.root, chain.source), made.input(chain.root, chain.source, "fuse")
        keys_made = sorted(select.markers(made.shard_keys()))
        control_rows = drawn(select, sets["download"], fuse, keys_made, CONTROL_ROWS, each_reason=0).any
        control = {
            "fused": _fused_share(select, made),
            "same_text": shuffled.extra["same_text"],
        }

    def counts(prefix: str) -> dict[str, int]:
        found = {name.removeprefix(prefix): int(n) for name, n in fused.extra.items() if name.startswith(prefix)}
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    return Captions(
        [_example(look) for look in lot.any],
        {reason: [_example(look) for look in looks] for reason, looks in lot.by_reason.items()},
        asked=fused.rows_ok,
        fused=_fused_share(sets["select"], current),
        control=control,
        control_rows=[_example(look) for look in control_rows],
        accepted=counts("accepted_"),
        refused=counts("rejected_"),
    )


def _fused_share(select: ShardSet, current: Current) -> float:
    """Of the samples that have a caption, those whose caption is the language model's."""
    total = Totals.of(select.markers(current.shard_keys()).values())
    return (total.rows_ok - total.fallbacks) / total.rows_ok


def _example(look: CaptionPreview) -> CaptionExample:
    return CaptionExample(look.picture, look.alt_text, look.vec, look.vecap, look.status, look.reason, look.rejected)


def _commands(chain: Chain, comparison: Comparison) -> list[str]:
    if chain.scale.name == "sample":
        return ["make demo" if comparison.arms == TRAINED_AT_EVERY_SCALE else "make experiment"]
    name = chain.scale.name
    return ["source env.sh", f"dagster asset materialize --select 'group:scale_{name}'"]


def _facts(chain: Chain, trainings: Sequence[Trained]) -> dict[str, str]:
    manifest = chain.current("mix", "manifest")
    facts = {
        "machine": f"{platform.machine()}, {chain.settings.threads} threads, {platform.system()}",
        "manifest": f"{manifest.rows_ok:,} samples, digest {manifest.digest[:16]}",
        "precision": str(trainings[0].report["precision"]),
        "model": f"{trainings[0].report['parameters']:,} parameters, {trainings[0].report['vocab_size']:,} tokens",
        "each training": f"{trainings[0].report['steps']:,} steps of {trainings[0].report['batch_size']:,} samples",
    }
    for one in trainings:
        seconds, rate = one.report["seconds"], one.report["samples_per_s"]
        facts[f"training of {one.arm}, seed {one.seed}"] = (
            f"{str(one.report['identity'])[:16]}, {seconds:.0f} s, {rate:.0f} samples/s, {one.report.get('threads', '?')} thread(s)"
        )
    return facts
