"""The stage `embed`: float32 embeddings of an evaluation set's pictures, of captions or of classes, by one model.

    00000.parquet           row, status, error, embedding     error says why a picture has none, but zeros
    00000.texts.parquet     item, embedding                   of a class: the normalised mean of its texts

Templates, metrics and intervals are no part of the identity: they re-use what is embedded.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core.captioning.describe import DECODERS
from veclip_core.evaluation.index import TEXTS, Index, read
from veclip_core.evaluation.opening import Unreadable, is_of_the_machine, picture_at
from veclip_core.evaluation.sets import EvaluationSet, PicturePlace
from veclip_core.evaluation.zeroshot import mean_of_texts
from veclip_core.mendable import Mendable
from veclip_core.networks import BATCH, ClipNetwork, NetworkConfig, open_network
from veclip_core.shards import ShardSet
from veclip_core.stage import RowCounts, ShardTask, Work

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

UNPREPARED = "not_preprocessed"
"""Decoded, but the model's own preprocessing raised: it would again."""
AHEAD = 2 * BATCH
"""Preprocessed pictures that may wait for the model: some 80 MB at 224 pixels."""


class BadEmbeddings(Mendable):
    """A model gave what can't be ranked."""


@dataclass(frozen=True)
class EmbedOperation:
    """Input: an `index`."""

    name: ClassVar[str] = "embed"
    needs_engine: ClassVar[bool] = True
    config: NetworkConfig
    threads: int | None = None
    opener: Callable[[], ClipNetwork] | None = None
    """Gives a model that is loaded already, where shards are made in this process."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        network = self.opener() if self.opener else open_network(self.config, self.threads)
        yield lambda task: embed_shard(task, network)


def embed_shard(task: ShardTask, network: ClipNetwork) -> RowCounts:
    """A row for each picture, embedded or with its reason, and one for each caption or class."""
    places = read(task.inputs["index"], task.key, "parquet").to_pylist()
    pictures = {row["row"]: PicturePlace(row["address"], row["offset"], row["length"]) for row in places}
    embedded, errors = embed_pictures(pictures, network)
    row_N = np.array(list(embedded), np.int32)
    picture_ND = np.stack(list(embedded.values())) if embedded else np.zeros((0, 1), np.float32)
    rows = [*row_N.tolist(), *errors]
    task.write(
        pa.table(
            {
                "row": pa.array(rows, pa.int32()),
                "status": ["ok"] * len(row_N) + ["error"] * len(errors),
                "error": pa.array([None] * len(row_N) + list(errors.values()), pa.string()),
                "embedding": _column(picture_ND, len(errors)),
            }
        )
    )
    texts = read(task.inputs["index"], task.key, TEXTS)
    item_M, text_MD = embed_texts(texts["item"].to_numpy(), texts["text"].to_pylist(), network)
    table = pa.table({"item": pa.array(item_M, pa.int32()), "embedding": _column(text_MD)})
    pq.write_table(table, task.out(TEXTS), compression="zstd")
    ok = len(row_N) + len(item_M)
    return RowCounts(ok + len(errors), ok, dict(Counter(errors.values())), extra={"pictures": float(len(rows))})


def embed_pictures(
    places: dict[int, PicturePlace], network: ClipNetwork
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """By row: the embedding, or why there is none. Pictures are read, decoded and preprocessed in threads beside the model."""
    import torch

    found: dict[int, np.ndarray] = {}
    errors: dict[int, str] = {}
    batch: list[tuple[int, torch.Tensor]] = []

    def embed_batch() -> None:
        if batch:
            encoded_BD = network.encode_image(torch.stack([image for _, image in batch]))
            _require_unit_rows(encoded_BD, len(batch), "pictures")
            found.update((row, embedding_D) for (row, _), embedding_D in zip(batch, encoded_BD, strict=True))
            batch.clear()

    for row, image in _prepared_ahead(places, network):
        if isinstance(image, str):
            errors[row] = image
            continue
        batch.append((row, image))
        if len(batch) == BATCH:
            embed_batch()
    embed_batch()
    return found, errors


def embed_texts(item_T: np.ndarray, texts: Sequence[str], network: ClipNetwork) -> tuple[np.ndarray, np.ndarray]:
    """The items in order [M], and the normalised mean of each one's texts [M, D]; an item's texts lie together."""
    encoded = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        encoded.append(np.asarray(network.encode_text(some), np.float32))
        _require_unit_rows(encoded[-1], len(some), "texts")
    if not encoded:
        return np.zeros(0, np.int32), np.zeros((0, 1), np.float32)
    return mean_of_texts(item_T, np.concatenate(encoded))


def _prepared_ahead(
    places: dict[int, PicturePlace], network: ClipNetwork
) -> "Iterator[tuple[int, torch.Tensor | str]]":
    """Each row in order with its preprocessed picture, or the reason why there is none; the next `AHEAD` meanwhile."""

    def prepare(place: PicturePlace) -> "torch.Tensor | str":
        try:
            picture = picture_at(place)
        except Unreadable as reason:
            return str(reason)
        try:
            return network.preprocess(picture)
        except Exception as error:
            if is_of_the_machine(error):
                raise
            logger.warning("%s can't be preprocessed", place.address, exc_info=True)
            return UNPREPARED

    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[int, Future[Any]]] = deque()
        for row, place in places.items():
            waiting.append((row, pool.submit(prepare, place)))
            if len(waiting) >= AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        for row, image in waiting:
            yield row, image.result()


def _require_unit_rows(encoded_BD: np.ndarray, rows: int, what: str) -> None:
    lengths_B = np.linalg.norm(encoded_BD, axis=1)
    if len(encoded_BD) != rows or not np.allclose(lengths_B, 1, atol=1e-3):
        raise BadEmbeddings(
            f"{rows} {what} came back as {encoded_BD.shape} with lengths {lengths_B.min():.3f} to {lengths_B.max():.3f}, not as"
            " L2-normalised rows: weights that are not finite, or that are not this model's, give such"
        )


def _column(rows_ND: np.ndarray, missing: int = 0) -> pa.Array:
    """Rows as one column, and so many of zeros behind: Arrow writes a null among lists of fixed size that it can't read."""
    width = rows_ND.shape[1]
    values = np.concatenate([rows_ND, np.zeros((missing, width), np.float32)]).astype(np.float32, copy=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


def of_pictures(embedded: ShardSet, index: Index, pictures: int) -> tuple[np.ndarray, dict[int, str]]:
    """A row for each picture [N, D], zeros for those without, and why these have none: read from the shards of an index."""
    rows: list[int] = []
    errors: dict[int, str] = {}
    parts = []
    for key in index.shard_keys():
        table = read(embedded, key, "parquet")
        told = table.select(["row", "error"]).to_pylist()
        good = [row["row"] for row in told if row["error"] is None]
        rows += good
        errors |= {row["row"]: row["error"] for row in told if row["error"] is not None}
        parts.append(_rows_of(table)[: len(good)])  # the others stand behind
    there = [part for part in parts if len(part)]
    picture_ND = np.zeros((pictures, there[0].shape[1] if there else 1), np.float32)
    if there:
        picture_ND[rows] = np.concatenate(there)
    return picture_ND, dict(sorted(errors.items()))


def of_texts(embedded: ShardSet, index: Index) -> np.ndarray:
    """One row a caption or class [M, D], read from the shards of an index of them."""
    return np.concatenate([_rows_of(read(embedded, key, TEXTS)) for key in index.shard_keys()])


def _rows_of(table: pa.Table) -> np.ndarray:
    """The embeddings [rows, D]."""
    column = table["embedding"].combine_chunks()
    values: np.ndarray = column.flatten().to_numpy()
    return values.reshape(-1, column.type.list_size)


def readable_now(evaluation_set: EvaluationSet, unreadable: Mapping[int, str]) -> list[int]:
    """Of pictures that could not be read when the set was embedded, by row with the reason: those that can be by now."""
    found = []
    for row, why in unreadable.items():
        if why == UNPREPARED:
            continue
        try:
            picture_at(evaluation_set.pictures[row])
        except Unreadable:
            continue
        found.append(row)
    return found
