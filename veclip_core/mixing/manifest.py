"""The stage `mix`: one row a sample that training can use, with where its picture lies and a column per caption source.

The draw between the columns is not made here: it is `choose`, at every step of training. So one manifest serves every mix.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from veclip_core import storage
from veclip_core.config import Config
from veclip_core.mixing.choose import ALT_TEXT, CONTROL, is_usable
from veclip_core.samples import MIX_SCHEMA
from veclip_core.shards import Current
from veclip_core.stage import RowCounts, ShardTask, Work
from veclip_core.stage_report import StageReport

CAPTION_COLUMNS = ("alt", "vec", "vecap")


class MixConfig(Config):
    """What decides the rows of a manifest."""

    version: int = 2
    """Raised when other rows are kept: since 2 none whose picture the describer could not open."""
    columns: tuple[str, ...] = CAPTION_COLUMNS
    """Caption sources, each a column. With `control` the manifest is the experiment's, with one more input."""


CONTROL_MIX = MixConfig(columns=(*CAPTION_COLUMNS, CONTROL))
"""The experiment's manifest: with the control's captions."""


@dataclass(frozen=True)
class MixOperation:
    """Joins `select` with where `download` put the pictures, by url_id; with the control, also the `select` of shuffled VeCs."""

    config: MixConfig
    name: ClassVar[str] = "mix"

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda task: _mix(task, self.config.columns)


def _mix(task: ShardTask, columns: tuple[str, ...]) -> RowCounts:
    downloads = task.inputs["download"]
    tar = downloads.address_of_tar(task.key)
    picture_of = {
        row["url_id"]: row
        for row in task.read("download", ["url_id", "status", "offset", "bytes"]).to_pylist()
        if row["status"] == "ok"
    }
    control_of: dict[str, str] = {}
    if CONTROL in columns:
        control = task.read(CONTROL, ["sample_id", "vecap"]).to_pylist()
        control_of = {row["sample_id"]: row["vecap"] or "" for row in control}
    errors: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    captions = task.read("select").to_pylist()
    for caption in captions:
        texts = {"alt": caption["alt_text"] or "", "vec": caption["vec"] or "", "vecap": caption["vecap"] or ""}
        picture = picture_of.get(caption["url_id"])
        if picture is None:
            errors["no_picture"] += 1
        elif caption["status"] == "error":
            errors[caption["error"]] += 1
        elif not any(is_usable(text, source) for source, text in texts.items()):
            errors["no_text"] += 1
        else:
            rows.append(
                {
                    "sample_id": caption["sample_id"],
                    "url_id": caption["url_id"],
                    "tar": tar,
                    "offset": picture["offset"],
                    "bytes": picture["bytes"],
                    **texts,
                    "vecap_status": caption["status"],
                    **({CONTROL: control_of.get(caption["sample_id"], "")} if CONTROL in columns else {}),
                }
            )
    distinct = len({row["sample_id"] for row in rows})
    if distinct != len(rows):
        raise ValueError(f"{len(rows) - distinct} sample_ids stand twice in {task.key}: `select` is damaged")
    task.write(pa.Table.from_pylist(rows, mix_schema(columns)))
    if CONTROL in columns and (missing := [row["sample_id"] for row in rows if row["sample_id"] not in control_of]):
        raise ValueError(f"{len(missing)} samples of {task.key} are not in the control's captions: make them again")
    by_column = {f"with_{source}": float(sum(bool(row[source]) for row in rows)) for source in columns}
    no_alt_text = sum(not is_usable(row["alt"], ALT_TEXT) for row in rows)
    return RowCounts(
        len(captions),
        len(rows),
        dict(errors),
        extra={"distinct_ids": float(distinct), "without_alt_text": float(no_alt_text), **by_column},
    )


def mix_schema(columns: tuple[str, ...]) -> pa.Schema:
    """The manifest's schema with further caption columns at its end."""
    schema = MIX_SCHEMA
    for name in columns:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def write_manifest_json(
    root: str, source: str, current: Current, report: StageReport, columns: tuple[str, ...] = CAPTION_COLUMNS
) -> str:
    """Write `<scale>.manifest.json` beside the shards: what training and other tools read first. Returns its address.

    Of a trial on some parts the file names them, so that it never stands in the place of the whole.
    """
    shards = current.shard_set(root, source)
    trial = f".first-{current.parts}-parts" if current.partial else ""
    uri = storage.join(shards.uri, f"{current.scale}{trial}.manifest.json")
    storage.write_json(
        uri,
        {
            "scale": current.scale,
            "digest": report.digest,
            "rows": report.rows_ok,
            "errors": dict(report.errors),
            "columns": list(columns),
            "counts": dict(report.extra),
            "default_weights": {"alt": 0.5, "vecap": 0.5},
            "partial": current.partial,
            "files": [shards.relative_file(key, "parquet") for key in sorted(shards.markers(current.shard_keys()))],
            "tars_relative_to": storage.join(root, source),
            "inputs": dict(current.inputs),
        },
    )
    return uri
