"""Batches as a pure function of (seed, step).

Nothing here keeps a position: batch 217 is the same whether it comes after batch 216, after a restart, or alone.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from veclip_core.mixing.choose import caption_of
from veclip_core.training.manifest_table import ManifestTable
from veclip_core.training.pictures import PictureCache, Pictures, StreamedPictures, TarCache
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import BpeTokenizer, SampleTokenizer, Tokenizer

if TYPE_CHECKING:
    import torch

    from veclip_core.training.report import Runtime

logger = logging.getLogger(__name__)

# Purposes of random streams: no two of them share numbers.
_ORDER, _CROP, _PASS = 1, 2, 3


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a step reads: every row once an epoch, in an order of the epoch's own; what fills no batch waits for the next."""

    rows: int
    """Read in an epoch."""
    batch_size: int
    seed: int
    sources: tuple[tuple[int, int], ...] = ()
    """`ManifestTable.sources`."""

    @classmethod
    def of(cls, rows: int, recipe: Recipe, sources: tuple[tuple[int, int], ...] = ()) -> "BatchPlan":
        """The recipe's plan for a manifest of so many rows; one smaller than a batch makes the batch smaller."""
        rows = sum(read for _, read in sources) if sources else rows
        if rows < 2:
            raise ValueError(f"{rows} row can't be trained on: contrast needs two")
        if rows < recipe.batch_size:
            logger.warning(
                "the manifest has %d rows, below the batch size of %d: batches of %d", rows, recipe.batch_size, rows
            )
        return cls(rows, min(rows, recipe.batch_size), recipe.seed, sources)

    @property
    def steps_per_epoch(self) -> int:
        return self.rows // self.batch_size

    def at(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The epoch of a step (from 0), the rows of its batch, and how often each was read before: its caption is drawn by that."""
        epoch, within = divmod(step, self.steps_per_epoch)
        batch = slice(within * self.batch_size, (within + 1) * self.batch_size)
        rows, before = _order_of_epoch(self.seed, epoch, self.rows, self.sources)
        return epoch, rows[batch], before[batch]


@lru_cache(maxsize=2)
def _order_of_epoch(
    seed: int, epoch: int, rows: int, sources: tuple[tuple[int, int], ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Two are kept: a batch may be prepared ahead, over the end of an epoch."""
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(rows)
    if not sources:
        return order, np.broadcast_to(np.int64(epoch), order.shape)
    read, before = _rows_of_epoch(seed, epoch, sources)
    return read[order], before[order]


def _rows_of_epoch(seed: int, epoch: int, sources: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a mixture that an epoch reads, and how often each was read before: of each source the next so many of an endless
    row of shuffled passes, so that over epochs no row is read more often than another of its source, but for one time."""
    found, turns, first = [], [], 0
    for number, (rows, read) in enumerate(sources):
        start = epoch * read
        passes = [
            np.random.default_rng([seed, _PASS, number, turn]).permutation(rows)
            for turn in range(start // rows, -(-(start + read) // rows))
        ]
        skipped = start - start // rows * rows
        found.append(first + np.concatenate(passes)[skipped : skipped + read])
        turns.append((start + np.arange(read)) // rows)
        first += rows
    return np.concatenate(found), np.concatenate(turns)


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
    rank: int = 0
    ranks: int = 1
    """Processes that share each batch: this one reads its `rank`-th share, a run of the whole batch's rows."""

    @classmethod
    def of(
        cls,
        manifest: ManifestTable,
        pictures: Pictures,
        tokenizer: Tokenizer,
        recipe: Recipe,
        rank: int = 0,
        ranks: int = 1,
    ) -> "Batches":
        """Raises ValueError where the ranks can't share a batch evenly."""
        plan = BatchPlan.of(len(manifest), recipe, manifest.sources)
        if plan.batch_size % ranks:
            raise ValueError(f"a batch of {plan.batch_size} can't be shared by {ranks} ranks: choose a divisor of it")
        return cls(manifest, pictures, tokenizer, recipe, plan, rank, ranks)

    def at(self, step: int) -> Batch:
        """The rank's share of a step's batch (from 0). What all shares hold together does not depend on the number of ranks."""
        import torch

        epoch, positions, before = self.plan.at(step)
        share = slice(*(self.plan.batch_size * end // self.ranks for end in (self.rank, self.rank + 1)))
        positions, before = positions[share], before[share]
        drawn = [
            caption_of(row, self.recipe.seed, int(times), self.recipe.weights)
            for row, times in zip(self.manifest.rows(positions), before, strict=True)
        ]
        texts = tuple(text for text, _, _ in drawn)
        images_BHWC = self._cropped(self.pictures.read(positions), step, share)
        return Batch(
            step=step,
            epoch=epoch,
            images_BCHW=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
            tokens_BL=self.tokenizer(texts),
            texts=texts,
            sources=Counter(source for _, source, _ in drawn),
            fallbacks=sum(fell_back for _, _, fell_back in drawn),
        )

    def _cropped(self, pictures_BSSC: np.ndarray, step: int, share: slice) -> np.ndarray:
        """Random crops, some mirrored, drawn for the whole batch from the step's own stream."""
        side = self.recipe.image_size
        count, margin = self.plan.batch_size, self.pictures.size - side
        random = np.random.default_rng([self.recipe.seed, _CROP, step])
        tops, lefts = random.integers(0, margin + 1, size=(2, count))[:, share]
        mirrored = random.random(count)[share] < (0.5 if self.recipe.flip else 0.0)
        images_BHWC = np.empty((len(pictures_BSSC), side, side, 3), dtype=np.uint8)
        for image, picture, top, left, mirror in zip(images_BHWC, pictures_BSSC, tops, lefts, mirrored, strict=True):
            crop = picture[top : top + side, left : left + side]
            image[:] = crop[:, ::-1] if mirror else crop
        return images_BHWC


def tokenizer_for(recipe: Recipe, manifest: ManifestTable) -> Tokenizer:
    """The recipe's tokenizer; one cut to the manifest depends on its AltTexts, VeCs and VeCaps, not on the recipe's weights."""
    if recipe.tokenizer == "bpe":
        return BpeTokenizer(recipe.context_length)
    return SampleTokenizer.of_texts(manifest.texts(), recipe.context_length)


def pictures_for(recipe: Recipe, manifest: ManifestTable, runtime: "Runtime") -> Pictures:
    """Decoded once where that fits into the runtime's limit, else read at every use: remote ones from copies of their tars, where
    those fit into theirs."""
    folder, threads = runtime.cache_folder, runtime.loader_threads
    decoded = len(manifest) * 3 * recipe.cache_size**2
    if folder is not None and decoded <= runtime.max_cache_bytes:
        return PictureCache.open(manifest, recipe.cache_size, recipe.fit, folder, threads)
    encoded = pc.sum(manifest.table["bytes"]).as_py() or 0
    fits = folder is not None and encoded <= runtime.max_tar_cache_bytes
    tars = TarCache(folder / "tars") if folder is not None and fits else None
    return StreamedPictures(manifest, recipe.cache_size, recipe.fit, threads, tars)
