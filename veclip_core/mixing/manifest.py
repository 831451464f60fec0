"""The stage `mix`: one row a sample that training can use, with where its picture lies and a column per caption source.

The draw between the columns is not made here: it is `choose`, at every step of training. So one manifest serves every mix.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from veclip_core import storage
from veclip_core.captioning.styles import Style
from veclip_core.config import Config
from veclip_core.mixing.choose import ALT_TEXT, CONTROL, usable_mask
from veclip_core.mixing.removals import REMOVED, Removals
from veclip_core.mixing.score import reaches
from veclip_core.samples import MIX_SCHEMA
from veclip_core.screening.verdicts import SCREEN, reasons_of
from veclip_core.shards import Current
from veclip_core.stage import RowCounts, ShardTask, Work
from veclip_core.stage_report import StageReport

CAPTION_COLUMNS = ("alt", "vec", "vecap")
SCORE = "dfn_score"
"""The column of the data-filtering network's scores."""
SAMPLE_COLUMNS = ["sample_id", "url_id", "alt_text", "vec", "vecap", "status", "error"]
UNCAPTIONED = "alt"
"""`vecap_status` of a sample that no captioner has seen."""


class FurtherColumn(Config):
    """A caption column made by another run of the captioning stages over the same samples."""

    name: str
    """The column: `control`, or `vecap_short`, `vecap_short_status` and `vec_dense` of the styles."""
    input: str
    """The stage's input that has it, itself an output of `select`."""
    text: Literal["vec", "vecap", "status"] = "vecap"
    """Which of that output's columns; `status` says how its VeCap came to be, and is no caption source."""


class ScoreColumn(Config):
    """The data-filtering network's scores in a manifest, and what is kept by them."""

    least: float | None = Field(None, ge=-1, le=1)
    """Samples with less, or without a score, are left out; None keeps all."""


class MixConfig(Config):
    """What decides the rows of a manifest."""

    version: int = 2
    """Raised when other rows are kept: since 2 none whose picture the describer could not open."""
    further: tuple[FurtherColumn, ...] = ()
    """Caption sources besides AltText, VeC and VeCap."""
    captioned: bool = True
    """Whether the samples are those of `select`; else those of the URL list, which have an AltText alone."""
    scores: ScoreColumn | None = None
    """With the column of scores of the stage `score`."""
    removed: str | None = None
    """Digest of the list of what is left out (mixing/removals.py)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All caption sources; the columns of others are empty."""
        if not self.captioned:
            return (ALT_TEXT,)
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
    """Joins `select` (or `list_urls`) with where `download` put the pictures, by url_id, and with further outputs of `select` and
    with `score`, by sample_id.

    With `screen` among its inputs, rows of pictures that are refused there are left out, whenever they were captioned.
    """

    config: MixConfig
    removals: Removals = field(default_factory=Removals)
    """What `config.removed` is the digest of."""
    name: ClassVar[str] = "mix"

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda task: _mix(task, self.config, self.removals)


def _mix(task: ShardTask, config: MixConfig, removals: Removals) -> RowCounts:
    downloads = task.read("download", ["url_id", "url", "status", "offset", "bytes"])
    captions = task.read("select", SAMPLE_COLUMNS) if config.captioned else _uncaptioned(task)
    pictures = downloads.filter(pc.equal(downloads["status"], "ok"))
    place = pc.index_in(captions["url_id"], value_set=pictures["url_id"].combine_chunks())
    texts = {
        source: pc.fill_null(captions[column], "")
        for source, column in (("alt", "alt_text"), ("vec", "vec"), ("vecap", "vecap"))
    }
    usable = np.logical_or.reduce([usable_mask(text, source) for source, text in texts.items()])
    screened = reasons_of(task, captions["url_id"])
    score_N = _scores_of(task, captions["sample_id"]) if config.scores else np.empty(0)
    left_out = _first_reasons(
        {
            REMOVED: removals.mask(captions, downloads),
            "no_picture": pc.is_null(place).to_numpy(),
            SCREEN: np.asarray(pc.is_valid(screened)),
            "caption": pc.equal(captions["status"], "error").to_numpy(),
            "no_text": ~usable,
            **_left_out_by_score(config.scores, score_N),
        }
    )
    kept = ~np.logical_or.reduce(list(left_out.values()))
    ids = captions["sample_id"].filter(kept)
    distinct = pc.count_distinct(ids).as_py()
    if distinct != len(ids):
        raise ValueError(f"{len(ids) - distinct} sample_ids stand twice in {task.key}: `select` is damaged")
    found = pictures.take(place.filter(kept))
    columns = {
        "sample_id": ids,
        "url_id": captions["url_id"].filter(kept),
        "tar": pa.repeat(task.inputs["download"].address_of_tar(task.key), len(ids)),
        "offset": found["offset"],
        "bytes": found["bytes"],
        **{source: text.filter(kept) for source, text in texts.items()},
        "vecap_status": captions["status"].filter(kept),
        **{column.name: _further(task, column, ids) for column in config.further},
    }
    schema = mix_schema([column.name for column in config.further])
    if config.scores:
        columns[SCORE] = pa.array(score_N[kept], pa.float32(), from_pandas=True)
        schema = schema.append(pa.field(SCORE, pa.float32()))
    task.write(pa.table(columns, schema=schema))
    errors = Counter(
        {reason: int(mask.sum()) for reason, mask in left_out.items() if reason not in ("caption", SCREEN)}
    )
    errors.update(captions["error"].filter(left_out["caption"]).to_pylist())
    errors.update(screened.filter(pa.array(left_out[SCREEN])).to_pylist())
    by_column = {
        f"with_{source}": float(pc.sum(pc.not_equal(columns[source], "")).as_py() or 0) for source in config.columns
    }
    no_alt_text = float((~usable_mask(columns["alt"], ALT_TEXT)).sum())
    return RowCounts(
        captions.num_rows,
        len(ids),
        {reason: count for reason, count in errors.items() if count},
        extra={"distinct_ids": float(distinct), "without_alt_text": no_alt_text, **by_column},
    )


def _uncaptioned(task: ShardTask) -> pa.Table:
    """The ok samples of the list as `select` would have them, without a generated text."""
    listed = task.read("list_urls", ["sample_id", "url_id", "alt_text", "status"])
    listed = listed.filter(pc.equal(listed["status"], "ok"))
    nothing, null = pa.repeat("", listed.num_rows), pa.nulls(listed.num_rows, pa.string())
    columns = [listed[name] for name in SAMPLE_COLUMNS[:3]]
    return pa.table([*columns, nothing, nothing, pa.repeat(UNCAPTIONED, listed.num_rows), null], SAMPLE_COLUMNS)


def _scores_of(task: ShardTask, ids: pa.ChunkedArray) -> np.ndarray:
    """Each sample's score, NaN where it has none; float32 (N,)."""
    scored = task.read("score", ["sample_id", "score"])
    found = scored["score"].take(pc.index_in(ids, value_set=scored["sample_id"].combine_chunks()))
    return np.asarray(found.to_numpy(zero_copy_only=False), np.float32)


def _left_out_by_score(column: ScoreColumn | None, score_N: np.ndarray) -> dict[str, np.ndarray]:
    if column is None or column.least is None:
        return {}
    return {"no_score": np.isnan(score_N), "low_score": ~reaches(score_N, column.least)}


def _first_reasons(masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks with each row in the first of them only that has it."""
    taken = np.zeros(len(next(iter(masks.values()))), bool)
    first = {}
    for reason, mask in masks.items():
        first[reason] = mask & ~taken
        taken |= mask
    return first


def _further(task: ShardTask, column: FurtherColumn, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """A further column's texts for the kept samples. Raises ValueError where one is missing."""
    made = task.read(column.input, ["sample_id", column.text])
    place = pc.index_in(ids, value_set=made["sample_id"].combine_chunks())
    if place.null_count:
        raise ValueError(
            f"{place.null_count} samples of {task.key} are not in the captions for the column {column.name}: make them again"
        )
    return pc.fill_null(made[column.text].take(place), "")


def mix_schema(further: Sequence[str]) -> pa.Schema:
    """The manifest's schema with further columns at its end."""
    schema = MIX_SCHEMA
    for name in further:
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def manifest_address(root: str, source: str, current: Current) -> str:
    """Where a manifest's JSON lies. Of a trial on some parts the name says so: it never stands in the place of the whole."""
    trial = f".first-{current.parts}-parts" if current.partial else ""
    return storage.join(current.shard_set(root, source).uri, f"{current.scale}{trial}.manifest.json")


def write_manifest_json(root: str, source: str, current: Current, report: StageReport, config: MixConfig) -> str:
    """Write the manifest's JSON beside the shards: what training and other tools read first. Returns its address."""
    shards, uri = current.shard_set(root, source), manifest_address(root, source, current)
    storage.write_json(
        uri,
        {
            "scale": current.scale,
            "digest": report.digest,
            "rows": report.rows_ok,
            "errors": dict(report.errors),
            "columns": list(config.columns),
            "scores": config.scores.model_dump() if config.scores else None,
            "counts": dict(report.extra),
            "default_weights": {"alt": 0.5, "vecap": 0.5} if config.captioned else {"alt": 1.0},
            "partial": current.partial,
            "files": [shards.relative_file(key, "parquet") for key in sorted(shards.markers(current.shard_keys()))],
            "tars_relative_to": storage.join(root, source),
            "inputs": dict(current.inputs),
        },
    )
    return uri
