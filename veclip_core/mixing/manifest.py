"""The stage `mix`: one row a sample that training can use, with where its picture lies and a column per caption source.

The draw between the columns is not made here: it is `choose`, at every step of training. So one manifest serves every mix.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from veclip_core import storage
from veclip_core.captioning.styles import Style
from veclip_core.config import Config
from veclip_core.mixing.choose import ALT_TEXT, CONTROL, is_usable
from veclip_core.samples import MIX_SCHEMA
from veclip_core.shards import Current
from veclip_core.stage import RowCounts, ShardTask, Work
from veclip_core.stage_report import StageReport

CAPTION_COLUMNS = ("alt", "vec", "vecap")


class FurtherColumn(Config):
    """A caption column made by another run of the captioning stages over the same samples."""

    name: str
    """The column: `control`, or `vecap_short`, `vecap_short_status` and `vec_dense` of the styles."""
    input: str
    """The stage's input that has it, itself an output of `select`."""
    text: Literal["vec", "vecap", "status"] = "vecap"
    """Which of that output's columns; `status` says how its VeCap came to be, and is no caption source."""


class MixConfig(Config):
    """What decides the rows of a manifest."""

    version: int = 2
    """Raised when other rows are kept: since 2 none whose picture the describer could not open."""
    further: tuple[FurtherColumn, ...] = ()
    """Caption sources besides AltText, VeC and VeCap."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All caption sources."""
        return (*CAPTION_COLUMNS, *(column.name for column in self.further if column.text != "status"))


CONTROL_MIX = MixConfig(further=(FurtherColumn(name=CONTROL, input=CONTROL),))
"""The experiment's manifest: with the control's captions, which are fused from another picture's VeC."""


def mix_of(styles: Sequence[Style], with_own_description: Collection[str] = ()) -> MixConfig:
    """A manifest with the captions of further styles; those named have descriptions of their own as well."""
    further = []
    for style in styles:
        further.append(FurtherColumn(name=style.column, input=style.column))
        further.append(FurtherColumn(name=f"{style.column}_status", input=style.column, text="status"))
        if style.name in with_own_description:
            further.append(FurtherColumn(name=style.vec_column, input=style.column, text="vec"))
    return MixConfig(further=tuple(further))


@dataclass(frozen=True)
class MixOperation:
    """Joins `select` with where `download` put the pictures, by url_id, and with further outputs of `select`, by sample_id."""

    config: MixConfig
    name: ClassVar[str] = "mix"

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda task: _mix(task, self.config)


def _mix(task: ShardTask, config: MixConfig) -> RowCounts:
    downloads = task.inputs["download"]
    tar = downloads.address_of_tar(task.key)
    picture_of = {
        row["url_id"]: row
        for row in task.read("download", ["url_id", "status", "offset", "bytes"]).to_pylist()
        if row["status"] == "ok"
    }
    further: dict[str, dict[str, str]] = {}
    for column in config.further:
        made = task.read(column.input, ["sample_id", column.text]).to_pylist()
        further[column.name] = {row["sample_id"]: row[column.text] or "" for row in made}
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
                    **{name: text_of.get(caption["sample_id"]) for name, text_of in further.items()},
                }
            )
    distinct = len({row["sample_id"] for row in rows})
    if distinct != len(rows):
        raise ValueError(f"{len(rows) - distinct} sample_ids stand twice in {task.key}: `select` is damaged")
    for name in further:
        if missing := sum(row[name] is None for row in rows):
            raise ValueError(
                f"{missing} samples of {task.key} are not in the captions for the column {name}: make them again"
            )
    task.write(pa.Table.from_pylist(rows, mix_schema([column.name for column in config.further])))
    by_column = {f"with_{source}": float(sum(bool(row[source]) for row in rows)) for source in config.columns}
    no_alt_text = sum(not is_usable(row["alt"], ALT_TEXT) for row in rows)
    return RowCounts(
        len(captions),
        len(rows),
        dict(errors),
        extra={"distinct_ids": float(distinct), "without_alt_text": float(no_alt_text), **by_column},
    )


def mix_schema(further: Sequence[str]) -> pa.Schema:
    """The manifest's schema with further columns at its end."""
    schema = MIX_SCHEMA
    for name in further:
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
