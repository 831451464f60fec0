"""Evaluation sets at an address, brought into the cache: once, and read when all of it is there."""

from pathlib import Path

from veclip_core import storage
from veclip_core.evaluation.set_catalogue import SetSpec
from veclip_core.evaluation.sets import EvaluationSetError


def fetched(name: str, spec: SetSpec, folder: Path, allowed_hosts: frozenset[str]) -> Path:
    """The local path of a set."""
    if storage.is_local(spec.path):
        return Path(spec.path.removeprefix("file://")).expanduser().resolve()
    raise EvaluationSetError(f"{name}: {spec.path} can't be fetched")
