"""Several manifests as one training set, each with a weight: DFN data and VeCap data, as in the paper's second table.

A weight says how often an epoch reads a source's rows: 1 is each row once, 2 each twice, 0.5 every second one, another half in the
next epoch. The rows stay where they are; a mixture is a list.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.mendable import Mendable

MIXTURES = "mixture"
"""The folder of a source's mixtures."""


class MixtureError(Mendable):
    """A mixture can't be made or read; the message says how to mend that."""


class ManifestJson(BaseModel):
    """What a mixture reads of a manifest's JSON, which may be a stranger's."""

    model_config = ConfigDict(frozen=True, strict=True)

    digest: str = Field(min_length=1)
    rows: int = Field(ge=0)
    files: tuple[str, ...] = Field(strict=False)
    tars_relative_to: str
    columns: tuple[str, ...] = Field(strict=False)
    partial: bool = False


def read_manifest_json(uri: str) -> ManifestJson:
    """Raises MixtureError where there is none, or what there is is no manifest's."""
    try:
        return ManifestJson.model_validate(storage.read_json(uri))
    except FileNotFoundError as error:
        raise MixtureError(
            f"there is no manifest at {storage.shown(uri)}: VECLIP_MIXTURE names `manifest`, `dfn_manifest`, or the address of a"
            " manifest's JSON"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise MixtureError(
            f"{storage.shown(uri)} is no manifest's JSON that can be read ({type(error).__name__}: {str(error)[:300]})"
        ) from error


@dataclass(frozen=True)
class MixedSource:
    """One manifest of a mixture."""

    manifest: str
    """Address of its JSON."""
    digest: str
    """Of its rows."""
    rows: int
    weight: float

    @property
    def rows_per_epoch(self) -> int:
        return round(self.weight * self.rows)


@dataclass(frozen=True)
class Mixture:
    """Manifests and their weights, in an order of their own: the same however they were named."""

    sources: tuple[MixedSource, ...]
    partial: bool
    """Whether one of them is a trial."""

    @property
    def digest(self) -> str:
        """Of the rows of all sources, and of the weights."""
        return digest_of([[source.digest, source.weight] for source in self.sources])

    @property
    def rows_per_epoch(self) -> int:
        return sum(source.rows_per_epoch for source in self.sources)


def mixture_of(weights: Mapping[str, float]) -> Mixture:
    """Args: weights: address of a manifest's JSON to its weight.

    Raises:
        MixtureError: for a weight that is no positive number, for no manifest, or one that stands twice.
    """
    if not weights:
        raise MixtureError("a mixture needs manifests: give each a weight")
    sources, partial = [], False
    for uri, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise MixtureError(f"the weight of {uri} is {weight}: it must be a positive number")
        where = uri if "://" in uri else str(Path(uri).resolve())
        told = read_manifest_json(where)
        source = MixedSource(where, told.digest, told.rows, float(weight))
        if not source.rows_per_epoch:
            raise MixtureError(f"with the weight {weight}, an epoch reads none of the {source.rows:,} rows of {uri}")
        sources.append(source)
        partial |= told.partial
    sources.sort(key=lambda source: source.digest)
    if len({source.digest for source in sources}) < len(sources):
        raise MixtureError(
            "a manifest stands twice in the mixture, or two have the same rows: give one of them more weight"
        )
    return Mixture(tuple(sources), partial)


def write_mixture(folder: str, name: str, mixture: Mixture) -> str:
    """Write a mixture for good, and let `name` stand for it from now on; the address it has for good."""
    told = {
        "digest": mixture.digest,
        "rows_per_epoch": mixture.rows_per_epoch,
        "partial": mixture.partial,
        "sources": [asdict(source) for source in mixture.sources],
    }
    uri = storage.join(folder, f"{mixture.digest[:16]}.mixture.json")
    storage.write_json(uri, told)
    storage.write_json(storage.join(folder, "current", f"{name}.json"), told)
    return uri


def read_mixture(folder: str, name: str) -> Mixture | None:
    """What `name` stands for; None where nothing does yet."""
    try:
        told = storage.read_json(storage.join(folder, "current", f"{name}.json"))
    except FileNotFoundError:
        return None
    return Mixture(tuple(MixedSource(**source) for source in told["sources"]), told["partial"])
