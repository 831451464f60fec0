"""Evaluation sets as settings name them."""

from veclip_core.evaluation.set_specs import open_set
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.settings import Settings


def set_named(told: str, settings: Settings, imagenet_templates: bool = True) -> EvaluationSet:
    """A set of VECLIP_EVALUATION_SETS by its name, `openmoji` (the sample's), PATH or NAME=PATH.

    Args:
        imagenet_templates: whether a set named `imagenet...` without templates of its own has OpenAI's.

    Raises:
        EvaluationSetError: where it is not there, or not whole.
    """
    return open_set(
        told,
        settings.cache_folder,
        settings.evaluation_sets or None,
        allowed_hosts=frozenset(settings.allow_hosts),
        imagenet_templates=imagenet_templates,
    )
