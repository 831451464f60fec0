"""The stage `score`: how well each AltText fits its picture, by a data-filtering network, which is a CLIP model.

What is kept by the scores is decided later, by a threshold or a share: scoring takes a GPU, choosing takes none.
Source: Data Filtering Networks (arXiv 2309.17425).
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from veclip_core.captioning.describe import decoded_ahead, pictures_in
from veclip_core.config import Config
from veclip_core.networks import BATCH, ClipNetwork, NetworkConfig, open_network
from veclip_core.samples import SCORE_SCHEMA, UNDECODABLE, ShardKey
from veclip_core.screening.verdicts import admitted
from veclip_core.shards import ShardSet
from veclip_core.stage import RowCounts, ShardTask, Work

if TYPE_CHECKING:
    from PIL.Image import Image

NO_PICTURE, NO_TEXT, NOT_FINITE = "no_picture", "no_text", "not_finite"
DECIMALS = 4
"""Of a score: finer differences are a machine's rounding."""
SEEN_PX = 512
"""Larger pictures are scaled down to this side before the network's own preprocessing."""


class ScoreConfig(Config):
    """What decides the scores."""

    network: NetworkConfig


@dataclass(frozen=True)
class ScoreOperation:
    """Inputs: `list_urls` (AltText) and `download` (the picture); with `screen`, pictures refused there are not scored. One row a
    sample: its score, or why it has none."""

    name: ClassVar[str] = "score"
    needs_engine: ClassVar[bool] = True
    config: ScoreConfig
    threads: int | None = None

    @contextmanager
    def open(self) -> Iterator[Work]:
        network = open_network(self.config.network, self.threads)
        yield lambda task: score_shard(task, network)


def score_shard(task: ShardTask, network: ClipNetwork) -> RowCounts:
    """Write a row for each ok sample of the list, scored or with its reason."""
    listed = [row for row in task.read("list_urls", ["url_id", "sample_id", "alt_text", "status"]).to_pylist() if
              row["status"] == "ok"]  # fmt: skip
    downloaded, refused = admitted(task, ["offset", "bytes"])
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in downloaded}
    texts_of: dict[str, list[tuple[str, str]]] = {}
    for row in listed:
        if row["url_id"] in places and (row["alt_text"] or "").strip():
            texts_of.setdefault(row["url_id"], []).append((row["sample_id"], row["alt_text"]))
    scores: dict[str, float] = {}
    if texts_of:
        with task.inputs["download"].open(task.key, "tar") as tar:
            wanted = {of_url: place for of_url, place in places.items() if of_url in texts_of}
            for pictures in _batches(tar, wanted):
                scores.update(_scores(network, pictures, texts_of))
    rows = []
    for row in listed:
        score = scores.get(row["sample_id"])
        reason = None
        if score is None:
            reason = NO_TEXT if row["url_id"] in places else refused.get(row["url_id"], NO_PICTURE)
            reason = UNDECODABLE if row["url_id"] in texts_of and (row["alt_text"] or "").strip() else reason
        elif not math.isfinite(score):
            score, reason = None, NOT_FINITE
        rows.append({"sample_id": row["sample_id"], "url_id": row["url_id"], "score": score,
                     "status": "error" if reason else "ok", "error": reason})  # fmt: skip
    task.write(pa.Table.from_pylist(rows, SCORE_SCHEMA))
    errors = Counter(row["error"] for row in rows if row["error"])
    scored = {row["url_id"] for row in rows if row["status"] == "ok"}
    return RowCounts(len(rows), len(rows) - errors.total(), dict(errors), extra={"pictures_scored": len(scored)})


def _batches(tar: IO[bytes], places: dict[str, tuple[int, int]]) -> "Iterator[list[tuple[str, Image]]]":
    batch: list[tuple[str, Image]] = []
    for of_url, image in decoded_ahead(pictures_in(tar, places), SEEN_PX):
        if image is not None:
            batch.append((of_url, image))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _scores(
    network: ClipNetwork, pictures: "Sequence[tuple[str, Image]]", texts_of: dict[str, list[tuple[str, str]]]
) -> dict[str, float]:
    """Sample to score. A picture with several AltTexts is embedded once."""
    image_BD = network.encode_image([image for _, image in pictures])
    samples = [(number, *text) for number, (of_url, _) in enumerate(pictures) for text in texts_of[of_url]]
    found: dict[str, float] = {}
    for at in range(0, len(samples), BATCH):
        some = samples[at : at + BATCH]
        text_BD = network.encode_text([text for _, _, text in some])
        cosines_B = (image_BD[[number for number, _, _ in some]] * text_BD).sum(axis=-1)
        rounded = np.round(cosines_B.astype(np.float64), DECIMALS).tolist()
        found.update(zip((sample for _, sample, _ in some), rounded, strict=True))
    return found


@dataclass(frozen=True)
class Scores:
    """How many samples have each score: exact, and the same whatever the order or the number of shards."""

    counts: np.ndarray
    """Int64 (2 * 10^DECIMALS + 1,): samples by score, from -1 to 1."""

    @classmethod
    def of(cls, shards: ShardSet, keys: Iterable[ShardKey]) -> "Scores":
        """Read shard by shard, the scores alone."""
        counts = np.zeros(2 * 10**DECIMALS + 1, np.int64)
        for key in sorted(keys):
            score_N = shards.read_table(key, ["score"])["score"].drop_null().to_numpy()
            counts += np.bincount(_bins(score_N), minlength=len(counts))
        return cls(counts)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def lowest_of_top(self, share: float) -> float:
        """The score from which on at least `share` of the samples lie; equal scores are all kept.

        Raises:
            ValueError: when nothing is scored.
        """
        if not self.total:
            raise ValueError("no sample has a score")
        from_top = self.counts[::-1].cumsum()
        place = int(np.searchsorted(from_top, max(1, math.ceil(round(share * self.total, 6)))))
        return round((len(self.counts) - 1 - place) / 10**DECIMALS - 1, DECIMALS)

    def at_least(self, score: float) -> int:
        """How many samples have this score or more."""
        return int(self.counts[_bins(np.array([score]))[0] :].sum())

    def histogram(self, bins: int = 50) -> list[tuple[float, float]]:
        """(Score, samples) over the range that is in use."""
        used = np.flatnonzero(self.counts)
        if not len(used):
            return []
        edges = np.unique(np.linspace(used[0], used[-1] + 1, bins + 1).astype(np.int64))
        sums = np.add.reduceat(self.counts, edges[:-1])
        return [(float(edge) / 10**DECIMALS - 1, float(count)) for edge, count in zip(edges[:-1], sums, strict=True)]


def reaches(score_N: np.ndarray, least: float) -> np.ndarray:
    """Which scores are `least` or more, by the decimals that are kept; bool (N,). What has no score (NaN) is not."""
    found: np.ndarray = _bins(np.nan_to_num(score_N, nan=-1.0)) >= _bins(np.array([least]))
    return found & ~np.isnan(score_N)


def _bins(score_N: np.ndarray) -> np.ndarray:
    """Place of each score in `Scores.counts`."""
    found: Any = np.rint((np.clip(score_N.astype(np.float64), -1, 1) + 1) * 10**DECIMALS).astype(np.int64)
    return np.asarray(found)
