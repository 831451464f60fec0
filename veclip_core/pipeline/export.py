"""A scale's manifest as WebDataset tars for other trainers."""

from collections.abc import Mapping
from dataclasses import dataclass

from veclip_core import storage
from veclip_core.mixing.choose import TEMPLATE
from veclip_core.mixing.export import EXPORT, ExportConfig, ExportOperation
from veclip_core.mixing.mixture import read_manifest_json
from veclip_core.pipeline import executors
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.manifests import address_of_manifest
from veclip_core.pipeline.parts import first_parts, is_limited
from veclip_core.stage_report import StageReport
from veclip_core.training.manifest_table import ColumnsMissing


@dataclass(frozen=True)
class Exported:
    report: StageReport
    tars: str
    """All of them, as a pattern with braces: what WebDataset and open_clip's `--train-data` take."""


def make_export(
    chain: Chain, weights: Mapping[str, float], asset: str = "manifest", parts: int | None = None
) -> Exported:
    """Write the tars of a scale's current manifest, or what is missing of them.

    Args:
        weights: caption source to its share of the `.txt` files.
        asset: `manifest` or `dfn_manifest`.

    Raises:
        NotMadeYet: without that manifest.
        ColumnsMissing: where it has no such caption.
    """
    manifest = chain.current("mix", asset)
    shards = manifest.shard_set(chain.root, chain.source)
    columns = (*read_manifest_json(address_of_manifest(chain, asset)).columns, TEMPLATE)
    if missing := sorted(set(weights) - set(columns)):
        raise ColumnsMissing(
            f"{asset}_{chain.scale.name} has no texts {', '.join(missing)}: it has {', '.join(columns)}"
        )
    count, partial = first_parts(parts, manifest), is_limited(parts, manifest)
    operation = ExportOperation(ExportConfig(weights=dict(weights)))
    report = chain.run(
        operation, manifest.grid, count, {"mix": shards}, executors.for_captions(chain.settings, operation), partial
    )
    chain.promote(f"{EXPORT}_of_{asset}", report, manifest.grid, {**manifest.inputs, EXPORT: report.identity})
    made = storage.join(chain.root, chain.source, EXPORT, report.identity)
    return Exported(report, f"{made}/part-{_braces(count)}/{_braces(manifest.grid.shards_per_part)}.tar")


def _braces(count: int) -> str:
    return "00000" if count == 1 else f"{{00000..{count - 1:05d}}}"
