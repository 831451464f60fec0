"""The manifest as training reads it, and batches as a pure function of (seed, step).

Nothing here keeps a position: batch 217 is the same whether it comes after batch 216, after a restart, or alone.
"""

import hashlib
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.mendable import Mendable
from veclip_core.mixing.choose import caption_of
from veclip_core.training.pictures import PictureCache, Pictures, StreamedPictures
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import BpeTokenizer, SampleTokenizer, Tokenizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

VOCABULARY_COLUMNS = ("alt", "vec", "vecap")
"""Also of a manifest with more: all arms of an experiment share one vocabulary, and so their initial weights."""
COLUMNS = ("sample_id", "tar", "offset", "bytes", *VOCABULARY_COLUMNS)

# Purposes of random streams: no two of them share numbers.
_ORDER, _CROP = 1, 2


class ColumnsMissing(Mendable, ValueError):
    """A manifest has no such caption column; the message says how to get it."""


class EmptyManifest(Mendable, ValueError):
    """Nothing to train on; the message says where to look."""


@dataclass(frozen=True)
class ManifestTable:
    """A manifest's rows, in memory or memory-mapped."""

    source_uri: str
    """What the `tar` column is relative to."""
    table: pa.Table
    digest: str
    _batches: list[pa.RecordBatch] = field(init=False, repr=False, compare=False)
    _ends: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        batches = [batch for batch in self.table.to_batches() if batch.num_rows]
        object.__setattr__(self, "_batches", batches)
        object.__setattr__(self, "_ends", np.cumsum([batch.num_rows for batch in batches], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def tar_uri(self, tar: str) -> str:
        return tar if "://" in tar else storage.join(self.source_uri, tar)

    def rows(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Some rows, in the given order. Touches no other row, also of a memory-mapped manifest."""
        found = []
        for position in positions:
            number = int(np.searchsorted(self._ends, position, side="right"))
            batch = self._batches[number]
            at = int(position) - int(self._ends[number]) + batch.num_rows
            found.append({name: batch.column(name)[at].as_py() for name in self.table.column_names})
        return found

    def texts(self) -> Iterator[str]:
        """Every text that the vocabulary is made of."""
        for name in VOCABULARY_COLUMNS:
            for chunk in self.table.column(name).chunks:
                yield from (text for text in chunk.unique().to_pylist() if text)


def load_manifest(
    source_uri: str,
    paths: Sequence[str],
    digest: str | None = None,
    cache_folder: Path | None = None,
    further_columns: Sequence[str] = (),
) -> ManifestTable:
    """Read the manifest's parquet files, in the given order.

    Args:
        source_uri: folder or URL that the `tar` column, and a relative path, are relative to.
        paths: parquet files, relative to it, or absolute.
        digest: of the manifest's content, as `manifest.json` states it; computed over the files when None.
        further_columns: caption columns to read besides AltText, VeC and VeCap.
        cache_folder: where a memory-mapped copy is kept; without it the rows are held in memory (about 1 kB each).

    Raises:
        EmptyManifest: when there is no row.
        ColumnsMissing: when a column is missing.
    """
    uris = [path if "://" in path or path.startswith("/") else storage.join(source_uri, path) for path in paths]
    digest = digest or _digest_of_files(uris)
    columns = (*COLUMNS, *further_columns)
    if cache_folder is None:
        tables = list(_tables(uris, columns))
        table = pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})
    else:
        table = _memory_mapped(uris, columns, cache_folder / f"manifest-{digest[:24]}-{digest_of(columns)[:8]}.arrow")
    if not table.num_rows:
        raise EmptyManifest(
            f"the manifest of {source_uri} has no rows: no picture with a text came through the stages before"
        )
    return ManifestTable(source_uri, table, digest)


def _digest_of_files(uris: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for uri in uris:
        digest.update(hashlib.sha256(storage.read_bytes(uri)).digest())
    return digest.hexdigest()


def _tables(uris: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """One a row group, so that a large file is never in memory whole."""
    import pyarrow.parquet as pq

    for uri in uris:
        parquet = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)), pre_buffer=False)
        missing = [name for name in columns if name not in parquet.schema_arrow.names]
        if missing:
            raise ColumnsMissing(
                f"{uri} has no columns {missing}: make the manifest again with the styles that they belong to (VECLIP_STYLES), or"
                " give it no weight"
            )
        for number in range(parquet.num_row_groups):
            yield parquet.read_row_group(number, columns=list(columns))


def _memory_mapped(uris: Sequence[str], columns: Sequence[str], path: Path) -> pa.Table:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            writer: pa.ipc.RecordBatchFileWriter | None = None
            with storage.fatal_errors_named(str(path)), pa.OSFile(str(unfinished), "wb") as sink:
                for table in _tables(uris, columns):
                    writer = writer or pa.ipc.new_file(sink, table.schema)
                    writer.write_table(table)
                if writer is None:
                    return pa.table({name: [] for name in columns})
                writer.close()
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a step reads: every row once an epoch, in an order of the epoch's own; what fills no batch waits for the next."""

    rows: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, rows: int, recipe: Recipe) -> "BatchPlan":
        """The recipe's plan; a manifest smaller than one batch makes the batch smaller."""
        if rows < 2:
            raise ValueError(f"{rows} row can't be trained on: contrast needs two")
        if rows < recipe.batch_size:
            logger.warning(
                "the manifest has %d rows, below the batch size of %d: batches of %d", rows, recipe.batch_size, rows
            )
        return cls(rows, min(rows, recipe.batch_size), recipe.seed)

    @property
    def steps_per_epoch(self) -> int:
        return self.rows // self.batch_size

    def at(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of a step (from 0) and the rows of its batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        return _order_of_epoch(self.seed, epoch, self.rows)


@lru_cache(maxsize=2)
def _order_of_epoch(seed: int, epoch: int, rows: int) -> np.ndarray:
    """Two are kept: a batch may be prepared ahead, over the end of an epoch."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(rows)


@dataclass(frozen=True)
class Batch:
    """B samples. Legend: C colours, H and W pixels, L tokens."""

    step: int
    epoch: int
    images_BCHW: "torch.Tensor"
    """uint8, channels last in memory."""
    tokens_BL: "torch.Tensor"
    texts: tuple[str, ...]
    sources: Mapping[str, int]
    """Texts by the caption source they came from."""
    fallbacks: int


@dataclass(frozen=True)
class Batches:
    """Everything a training reads, by step."""

    manifest: ManifestTable
    pictures: Pictures
    tokenizer: Tokenizer
    recipe: Recipe
    plan: BatchPlan

    @classmethod
    def of(cls, manifest: ManifestTable, pictures: Pictures, tokenizer: Tokenizer, recipe: Recipe) -> "Batches":
        return cls(manifest, pictures, tokenizer, recipe, BatchPlan.of(len(manifest), recipe))

    def at(self, step: int) -> Batch:
        import torch

        epoch, positions = self.plan.at(step)
        drawn = [caption_of(row, self.recipe.seed, epoch, self.recipe.weights) for row in self.manifest.rows(positions)]
        texts = tuple(text for text, _, _ in drawn)
        images_BHWC = self._cropped(self.pictures.read(positions), step)
        return Batch(
            step=step,
            epoch=epoch,
            images_BCHW=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
            tokens_BL=self.tokenizer(texts),
            texts=texts,
            sources=Counter(source for _, source, _ in drawn),
            fallbacks=sum(fell_back for _, _, fell_back in drawn),
        )

    def _cropped(self, pictures_BSSC: np.ndarray, step: int) -> np.ndarray:
        """Random crops, some mirrored, drawn from the step's own stream."""
        side = self.recipe.image_size
        count, margin = len(pictures_BSSC), self.pictures.size - side
        random = np.random.default_rng([self.recipe.seed, _CROP, step])
        tops, lefts = random.integers(0, margin + 1, size=(2, count))
        mirrored = random.random(count) < (0.5 if self.recipe.flip else 0.0)
        images_BHWC = np.empty((count, side, side, 3), dtype=np.uint8)
        for image, picture, top, left, mirror in zip(images_BHWC, pictures_BSSC, tops, lefts, mirrored, strict=True):
            crop = picture[top : top + side, left : left + side]
            image[:] = crop[:, ::-1] if mirror else crop
        return images_BHWC


def tokenizer_for(recipe: Recipe, manifest: ManifestTable) -> Tokenizer:
    """The recipe's tokenizer; one cut to the manifest depends on its AltTexts, VeCs and VeCaps, not on the recipe's weights."""
    if recipe.tokenizer == "bpe":
        return BpeTokenizer(recipe.context_length)
    return SampleTokenizer.of_texts(manifest.texts(), recipe.context_length)


def pictures_for(
    recipe: Recipe, manifest: ManifestTable, folder: Path | None, max_cache_bytes: int, threads: int
) -> Pictures:
    """Decoded once into `folder` where that fits into `max_cache_bytes`, else read at every use."""
    needed = len(manifest) * 3 * recipe.cache_size**2
    if folder is not None and needed <= max_cache_bytes:
        return PictureCache.open(manifest, recipe.cache_size, recipe.fit, folder, threads)
    return StreamedPictures(manifest, recipe.cache_size, recipe.fit, threads)
