"""Batches as a pure function of (seed, step).

Nothing here keeps a position: batch 217 is the same whether it comes after batch 216, after a restart, or alone.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from veclip_core import storage
from veclip_core.mendable import Mendable
from veclip_core.mixing.choose import caption_of
from veclip_core.training.manifest_table import ManifestTable
from veclip_core.training.order import PIECE_ROWS, BatchPlan, WindowPlan, plan_of
from veclip_core.training.pictures import PictureCache, Pictures, PieceCache, StreamedPictures, TarCache
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import T5_HUB, BpeTokenizer, SampleTokenizer, T5Tokenizer, Tokenizer

if TYPE_CHECKING:
    import torch

    from veclip_core.training.report import Runtime

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.1
"""Of a rank's share of a batch."""
_CROP = 2
"""The purpose of a random stream, as those of `order.py`."""


class TooFewRows(Mendable, ValueError):
    """The fraction of the data that a recipe asks for fills no batch; the message says what would."""


class UnreadablePictures(Mendable):
    """Tars that vanished or are damaged; the message says how to get them again."""


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
    unreadable: int
    """Samples whose picture could not be read: others of the batch are there twice instead."""
    truncated: int
    """Texts that were longer than the recipe's context."""


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
        plan = plan_of(len(manifest), recipe, manifest.sources)
        if plan.batch_size % ranks:
            raise ValueError(f"a batch of {plan.batch_size} can't be shared by {ranks} ranks: choose a divisor of it")
        return cls(manifest, pictures, tokenizer, recipe, plan, rank, ranks)

    def at(self, step: int) -> Batch:
        """The rank's share of a step's batch (from 0). What all shares hold together does not depend on the number of ranks."""
        import torch

        epoch, positions, before = self.plan.share(step, self.rank, self.ranks)
        pictures_BSSC, problems = self.pictures.read(positions)
        if problems:
            taken = self._stand_ins(len(positions), problems)
            pictures_BSSC, positions, before = pictures_BSSC[taken], positions[taken], before[taken]
        drawn = [
            caption_of(row, self.recipe.seed, int(times), self.recipe.weights)
            for row, times in zip(self.manifest.rows(positions), before, strict=True)
        ]
        texts = tuple(text for text, _, _ in drawn)
        images_BHWC = self._cropped(pictures_BSSC, step)
        encoded = self.tokenizer.encode(texts)
        return Batch(
            step=step,
            epoch=epoch,
            images_BCHW=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
            tokens_BL=encoded.ids_BL,
            texts=texts,
            sources=Counter(source for _, source, _ in drawn),
            fallbacks=sum(fell_back for _, _, fell_back in drawn),
            unreadable=len(problems),
            truncated=encoded.truncated,
        )

    def _stand_ins(self, count: int, problems: Mapping[int, str]) -> np.ndarray:
        """Which place of a share each of its samples comes from: its own, or another's where its picture can't be read.

        Raises UnreadablePictures when these are too many to be an accident.
        """
        places = sorted(problems)
        for place in places:
            logger.warning("left out of a batch: %s", problems[place])
        if len(places) > max(1, MAX_UNREADABLE * count) or len(places) == count:
            raise UnreadablePictures(
                f"{len(places)} of {count} pictures of a batch can't be read, among them: {problems[places[0]]}. Make the"
                " shards and the manifest again (`veclip run shards`, then `veclip run manifest`) and start anew: the training"
                " goes on from its last checkpoint where the manifest is the same."
            )
        readable = np.setdiff1d(np.arange(count), places)
        taken = np.arange(count)
        taken[places] = readable[np.arange(len(places)) % len(readable)]
        return taken

    def _cropped(self, pictures_BSSC: np.ndarray, step: int) -> np.ndarray:
        """Random crops, some mirrored, drawn for the whole batch from the step's own stream."""
        side = self.recipe.image_size
        share = slice(*(self.plan.batch_size * end // self.ranks for end in (self.rank, self.rank + 1)))
        count, margin = self.plan.batch_size, self.pictures.size - side
        random = np.random.default_rng([self.recipe.seed, _CROP, step])
        tops, lefts = random.integers(0, margin + 1, size=(2, count))[:, share]
        mirrored = random.random(count)[share] < (0.5 if self.recipe.flip else 0.0)
        images_BHWC = np.empty((len(pictures_BSSC), side, side, 3), dtype=np.uint8)
        for image, picture, top, left, mirror in zip(images_BHWC, pictures_BSSC, tops, lefts, mirrored, strict=True):
            crop = picture[top : top + side, left : left + side]
            image[:] = crop[:, ::-1] if mirror else crop
        return images_BHWC


def rows_for(recipe: Recipe, manifest: ManifestTable) -> ManifestTable:
    """The manifest, or the fraction of it that the recipe reads.

    Raises TooFewRows where that fills no batch: a smaller one would be another training than the one it is compared with.
    """
    part = manifest.fraction(recipe.data_fraction)
    if part is not manifest and len(part) < recipe.batch_size:
        raise TooFewRows(
            f"a fraction of {recipe.data_fraction:g} of the manifest's {len(manifest):,} rows has {len(part):,}, fewer than a batch"
            f" of {recipe.batch_size:,}: take a larger data_fraction, a smaller batch_size, or more rows"
        )
    return part


def tokenizer_for(recipe: Recipe, manifest: ManifestTable, t5: str = T5_HUB) -> Tokenizer:
    """The recipe's tokenizer; one cut to the manifest depends on its AltTexts, VeCs and VeCaps, not on the recipe's weights.

    Raises TokenizerMissing where it is T5's, and `t5` (a folder or hub id) doesn't have it.
    """
    if recipe.tokenizer == "t5":
        return T5Tokenizer.load(recipe.context_length, t5)
    if recipe.tokenizer == "bpe":
        return BpeTokenizer(recipe.context_length)
    return SampleTokenizer.of_texts(manifest.texts(), recipe.context_length)


def pictures_for(recipe: Recipe, manifest: ManifestTable, runtime: "Runtime", ranks: int = 1) -> Pictures:
    """Decoded once where that fits into the runtime's limit, else read at every use: remote ones from copies of their tars, where
    those fit into theirs, else piece by piece where the recipe reads by windows."""
    folder, threads = runtime.cache_folder, runtime.loader_threads
    decoded = manifest.table.num_rows * 3 * recipe.cache_size**2
    if folder is not None and decoded <= runtime.max_cache_bytes:
        return PictureCache.open(manifest, recipe.cache_size, recipe.fit, folder, threads)
    encoded = pc.sum(manifest.table["bytes"]).as_py() or 0
    # Whole tars are copied, of which a manifest may name few pictures.
    fits = encoded <= runtime.max_tar_cache_bytes and bytes_of_tars(manifest) <= runtime.max_tar_cache_bytes
    tars = TarCache(folder / "tars") if folder is not None and fits else None
    pieces = None
    if isinstance(plan := plan_of(len(manifest), recipe, manifest.sources), WindowPlan) and tars is None:
        pieces = PieceCache(manifest, PIECE_ROWS, runtime.max_piece_bytes)
        wanted = plan.rows_in_reach(ranks) * encoded / len(manifest)
        remote = not storage.is_local(manifest.tar_uri(manifest.rows([0])[0]["tar"]))
        if remote and wanted > runtime.max_piece_bytes:
            logger.warning(
                "each rank reads from %.1f GB of pictures at a time and may keep %.1f: it will ask for the same again and again."
                " Raise VECLIP_TRAIN_READ_AHEAD_GB, or train on more ranks",
                wanted / 1e9, runtime.max_piece_bytes / 1e9,
            )  # fmt: skip
    return StreamedPictures(manifest, recipe.cache_size, recipe.fit, threads, tars, pieces)


def bytes_of_tars(manifest: ManifestTable) -> int:
    """Up to the last picture of each."""
    ends = pc.add(manifest.table["offset"], manifest.table["bytes"])
    by_tar = pa.table({"tar": manifest.table["tar"], "end": ends}).group_by("tar").aggregate([("end", "max")])
    return int(pc.sum(by_tar["end_max"]).as_py() or 0)
