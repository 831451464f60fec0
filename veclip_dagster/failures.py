"""What a person can mend becomes one sentence and is not retried; anything else keeps its trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from veclip_core.captioning.engines.weights import WeightsMissing
from veclip_core.evaluation.sets import EvaluationSetError
from veclip_core.settings import SettingsError
from veclip_core.shards import NotMadeYet
from veclip_core.sources.sample_packages import SampleWorldError
from veclip_core.sources.urls import ListError
from veclip_core.stage import StageFailed
from veclip_core.storage import StorageError

MENDABLE = (
    EvaluationSetError,
    ListError,
    NotMadeYet,
    SampleWorldError,
    SettingsError,
    StageFailed,
    StorageError,
    WeightsMissing,
)


@contextmanager
def clear_failures() -> Iterator[None]:
    try:
        yield
    except MENDABLE as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
