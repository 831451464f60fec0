"""Any models on any sets: scored, compared, held against the paper's numbers where they are its checkpoints, and published.

`veclip evaluate`, `veclip reproduce` and the asset `released_report` are this.
"""

import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.evaluation.compare import compare
from veclip_core.evaluation.evaluate import Evaluation, EvaluationConfig
from veclip_core.evaluation.layouts.class_names import templates_named
from veclip_core.evaluation.paper import RELEASED, PaperVerdict, verdicts
from veclip_core.evaluation.report.gain_figure import gain_charts
from veclip_core.evaluation.report.inputs import Contamination, HowTo
from veclip_core.evaluation.report.models_page import write_models_page
from veclip_core.evaluation.report.retrieved import RetrievalExamples, retrieval_examples
from veclip_core.evaluation.set_catalogue import OPENMOJI
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.evaluation.zeroshot import DRAWING_TEMPLATES
from veclip_core.mendable import Mendable
from veclip_core.pipeline import contamination
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.models import Model
from veclip_core.pipeline.report_names import as_file_name
from veclip_core.pipeline.score_tracking import plain_names, run_of, track_scores
from veclip_core.pipeline.scoring import score
from veclip_core.pipeline.sets import set_named
from veclip_core.pipeline.tracked_runs import with_runs
from veclip_core.pipeline.trained import Trained
from veclip_core.pipeline.training import tracker_from
from veclip_core.scales import SCALES, VECAP300M
from veclip_core.settings import Settings
from veclip_core.shards import read_current
from veclip_core.training.arms import BASELINE

logger = logging.getLogger(__name__)

EXPERIMENT = "veclip evaluations"
"""Of MLflow's runs."""
EVALUATION_TAG = "veclip.evaluation"
"""By its value, that of the page's folder, the same evaluation finds its run again."""


class EvaluationError(Mendable, ValueError):
    """What was asked for can't be compared or published."""


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated, and how it is published."""

    models: Sequence[Model]
    sets: Sequence[EvaluationSet]
    name: str
    """Of the page and the results in `reports`."""
    title: str
    commands: Sequence[str]
    """By which a reader repeats it."""
    config: EvaluationConfig
    baseline: str | None = None
    """The model that the others are compared with."""


@dataclass(frozen=True)
class MadeEvaluation:
    """What came of it."""

    results: Mapping[str, Any]
    verdicts: Sequence[PaperVerdict]
    results_uri: str
    report_uri: str
    run_ids: Mapping[str, str]
    """Name to MLflow run: the evaluation's own, and those of the trainings among the models."""

    @property
    def holds(self) -> bool:
        """Whether no verdict failed."""
        return all(one.holds is not False for one in self.verdicts)


def sets_named(told: Sequence[str], settings: Settings, templates: Sequence[str] = ()) -> list[EvaluationSet]:
    """Evaluation sets, those of the sample with the templates of drawings whatever others are evaluated by.

    Args:
        templates: by which classes without templates are scored; they stand before OpenAI's for a set named `imagenet...`.

    Raises:
        EvaluationSetError: where one is not there, or not whole.
    """
    found = [set_named(one, settings, imagenet_templates=not templates) for one in told]
    return [_of_drawings(one) if one.name == OPENMOJI else one for one in found]


def _of_drawings(one: EvaluationSet) -> EvaluationSet:
    labels = {label: replace(labelling, templates=DRAWING_TEMPLATES) for label, labelling in one.labels.items()}
    return replace(one, labels=labels)


def config_for(sets: Sequence[EvaluationSet], templates: Sequence[str]) -> EvaluationConfig:
    """How sets are scored: classes that come without templates by those given, or by open_clip's simple ones, of photographs.

    Raises:
        EvaluationSetError: for a template without a place for the class.
    """
    if templates:
        return EvaluationConfig(templates=templates_named(tuple(templates)))
    if all(labelling.templates for one in sets for labelling in one.labels.values()):
        return EvaluationConfig()
    return EvaluationConfig(templates=templates_named("simple"))


def report_name(models: Sequence[Model], sets: Sequence[EvaluationSet]) -> str:
    """A file name that says what was compared."""
    names = dict.fromkeys(model.candidate.name for model in models)
    name = as_file_name(f"{'+'.join(names)} on {'+'.join(one.name for one in sets)}")
    return f"evaluation_of_{name}" if _is_of_a_scale(name) else name


def _is_of_a_scale(name: str) -> bool:
    """Whether a scale's own reports are called so: its name, or that and a `-`."""
    return name.partition("-")[0] in SCALES


def evaluate_models(settings: Settings, asked: Asked) -> MadeEvaluation:
    """Score, compare, publish, track. Models and sets that were embedded before are not embedded again.

    Raises:
        EvaluationError: when there is no such baseline, a set comes twice, or the name is taken.
        Mendable: what is wrong with a model or a set.
    """
    if _is_of_a_scale(asked.name):
        raise EvaluationError(
            f"{asked.name} is a name of scale {asked.name.partition('-')[0]}'s own reports: give another"
        )
    names = list(dict.fromkeys(model.candidate.name for model in asked.models))
    if asked.baseline is not None and asked.baseline not in names:
        raise EvaluationError(f"there is no model {asked.baseline!r} to compare with; there are {', '.join(names)}")
    of_sets = [one.name for one in asked.sets]
    if doubled := [name for name in of_sets if of_sets.count(name) > 1]:
        raise EvaluationError(f"two sets are called {doubled[0]!r}: give them names, such as --set mine=PATH")
    asked = replace(asked, models=_with_runs(settings, asked.models))
    evaluations = score(settings, [model.candidate for model in asked.models], asked.sets, asked.config)
    results = dict(compare(evaluations, baseline=asked.baseline))
    found = verdicts(results, _checkpoints(asked.models), _with_own_templates(asked))
    copies = _contamination(settings, asked)
    results |= {
        "contamination": [asdict(one) for one in copies],
        "evaluated": [_told(model) for model in asked.models],
        "verdicts": [asdict(one) | {"difference": one.difference, "holds": one.holds} for one in found],
        "partial": any(model.trained is not None and model.trained.partial for model in asked.models),
    }
    reports = storage.join(settings.root, "reports")
    uri = storage.join(settings.root, "evaluation_reports", _identity(results))
    # First: a page that can't be drawn costs no numbers.
    for where in (storage.join(uri, "results.json"), storage.join(reports, f"{asked.name}.json")):
        storage.write_json(where, results)
    with tempfile.TemporaryDirectory() as made:
        page = write_models_page(
            results,
            Path(made) / "report.html",
            title=asked.title,
            charts=gain_charts(results),
            examples=_examples(evaluations, asked),
            contamination=copies,
            verdicts=found,
            howto=HowTo(asked.commands, _facts(settings, asked)),
        )
        for where in (storage.join(uri, "report.html"), storage.join(reports, f"{asked.name}.html")):
            storage.write_bytes(where, page.read_bytes())
        run_ids = _track(settings, asked, results, evaluations, page, storage.join(uri, "report.html"))
    return MadeEvaluation(
        results,
        found,
        storage.join(reports, f"{asked.name}.json"),
        storage.join(reports, f"{asked.name}.html"),
        run_ids,
    )


def _identity(results: Mapping[str, Any]) -> str:
    """Of a page: the same scores under other names, or beside another baseline, are another."""
    return digest_of([results["identity"], results["baseline"], results["models"], list(results["sets"])])[:16]


def _with_runs(settings: Settings, models: Sequence[Model]) -> list[Model]:
    """The models, trainings of ours with the MLflow runs that hold all their losses, where MLflow can be reached."""
    found: dict[tuple[str, str, int], Trained] = {}
    ours = [model.trained for model in models if model.trained]
    for scale in dict.fromkeys(one.scale for one in ours):
        for one in with_runs(Chain(settings, SCALES[scale]), [one for one in ours if one.scale == scale])[0]:
            found[one.scale, one.arm, one.seed] = one
    return [
        replace(model, trained=found[model.trained.scale, model.trained.arm, model.trained.seed])
        if model.trained
        else model
        for model in models
    ]


def _checkpoints(models: Sequence[Model]) -> dict[str, str]:
    """Model to the name of the released checkpoint that it is, of those that are."""
    return {
        model.candidate.name: model.candidate.network.model
        for model in models
        if model.candidate.network.kind == "released" and model.candidate.network.model in RELEASED
    }


def _with_own_templates(asked: Asked) -> list[str]:
    """The sets whose classes are told by other templates than ImageNet's."""
    imagenets = templates_named("openai")
    return [
        one.name
        for one in asked.sets
        if any(tuple(of.templates or asked.config.templates) != imagenets for of in one.labels.values())
    ]


def _told(model: Model) -> dict[str, Any]:
    network = model.candidate.network
    return {
        "model": model.candidate.name,
        "seed": model.candidate.seed,
        "told": model.told,
        "kind": network.kind,
        "weights": network.model,
        "revision": network.revision,
        "run_id": model.trained.run_id if model.trained else None,
        "millions": _millions(model.trained) if model.trained else None,
        "alt_text_only": model.trained is not None and model.trained.arm == BASELINE,
    }


def _millions(training: Trained) -> float | None:
    """Of pairs, as the paper counts the sizes of its data; None of data that is not the paper's."""
    scale = SCALES[training.scale]
    return scale.parts * scale.source.rows_per_part / 1e6 if scale.source == VECAP300M else None


def _examples(evaluations: Sequence[Evaluation], asked: Asked) -> list[RetrievalExamples]:
    """Hits and misses of the baseline and the first other model, or of the only one, on each set."""
    found = []
    for name in dict.fromkeys(one.evaluation_set.name for one in evaluations):
        first: dict[str, Evaluation] = {}
        for one in evaluations:
            if one.evaluation_set.name == name:
                first.setdefault(one.model, one)
        # The baseline stands first, the others in their order.
        models = sorted(first.values(), key=lambda one: one.model != asked.baseline)
        found.append(retrieval_examples(*models[:2]))
    return found


def _contamination(settings: Settings, asked: Asked) -> list[Contamination]:
    """What the scales of our trainings know of copies of the sets' pictures; of models of others nothing is known."""
    scales = [SCALES[name] for name in dict.fromkeys(model.trained.scale for model in asked.models if model.trained)]
    return [
        one
        for scale in scales
        if read_current(settings.root, scale.source.name, "mix", scale.name) is not None
        for one in contamination.of(Chain(settings, scale), asked.sets)
    ]


def _facts(settings: Settings, asked: Asked) -> dict[str, str]:
    facts = {"machine": f"{platform.machine()}, {settings.threads} threads, {platform.system()}"}
    return facts | _what(asked)


def _what(asked: Asked) -> dict[str, str]:
    """Each model and set with what tells it from another of its name."""
    what = {}
    for model in asked.models:
        network, seed = model.candidate.network, f" seed {model.candidate.seed}" if model.trained else ""
        revision = network.revision or "no revision"
        what[f"model {model.candidate.name}{seed}"] = f"{model.told} ({network.kind}, {revision})"
    for one in asked.sets:
        what[f"set {one.name}"] = f"{len(one):,} pictures, {len(one.captions):,} captions, digest {one.content[:16]}"
    return what


def _track(
    settings: Settings,
    asked: Asked,
    results: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    page: Path,
    report_uri: str,
) -> dict[str, str]:
    """One run for the evaluation; the scores of trainings also in their own runs, beside their losses. The results are stored
    by now: with MLflow out of reach nothing is lost but this."""
    kept = page.with_name("results.json")
    storage.write_json(str(kept), results)
    tracker = tracker_from(settings)
    tags = {EVALUATION_TAG: _identity(results)}
    before = run_of(settings, EXPERIMENT, asked.name, tags)
    tracker.start_run(EXPERIMENT, asked.name, tags, plain_names(_what(asked)), before)
    tracker.log_metrics(_metrics(results))
    tracker.log_artifact(page)
    tracker.log_artifact(kept)
    tracker.finish()
    if tracker.run_id is None:
        if settings.tracking_uri is not None:
            logger.warning("the scores are not in MLflow: evaluate again when it is back (nothing is embedded again)")
        return {}
    run_ids = {asked.name: tracker.run_id}
    for model in asked.models:
        if model.trained is None or model.trained.run_id is None:
            continue
        name, seed = model.candidate.name, model.candidate.seed
        own = [one for one in evaluations if (one.model, one.seed) == (name, seed)]
        track_scores(settings, model.trained, own, page, report_uri)
        run_ids[f"{name} seed {seed}"] = model.trained.run_id
    return run_ids


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Each model's scores over its seeds, and for the paper's checkpoints how far they are from the published ones."""
    found = {f"{row['model']}/{row['set']}/{row['split']}/{row['metric']}": row["value"] for row in results["summary"]}
    found |= {f"{row['model']}/paper/{row['column']}": row["difference"] for row in results["verdicts"]}
    return plain_names(found)
