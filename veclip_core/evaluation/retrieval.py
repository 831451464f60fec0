"""Zero-shot retrieval, image to text (i2t) and text to image (t2i): the rank of the right match for every query.

Everything else (R@K, mean recall, mean rank, intervals) follows from the ranks. R@K is that of CLIP papers and of
LAION-AI/CLIP_benchmark: a query counts when at least one right match is among the first K. Two texts that are the same have the
same score; of such ties CLIP_benchmark's sort puts either first, and we count what a random order gives on average.
Shapes: N pictures, M captions.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

RECALL_AT = (1, 5, 10)
CELLS_AT_ONCE = 16_000_000
"""Scores that are held at a time: 64 MB, and a quarter of that for each comparison."""

EXACT = 1e-9
"""Rounding of a share."""


@dataclass(frozen=True)
class Ranked:
    """Where the best right match of each query stands, in expectation over a random order of what has the same score: a model
    that gives one score to everything gets what chance gives."""

    before_Q: np.ndarray
    """Wrong items with a higher score than the best right one."""
    tied_wrong_Q: np.ndarray
    """Those with its score."""
    tied_right_Q: np.ndarray
    """Right items with that score: itself, and others."""

    @property
    def rank_Q(self) -> np.ndarray:
        """The mean rank, 1-based: the best of r among g in a random order stands at (g + 1) / (r + 1)."""
        return self.before_Q + (self.tied_wrong_Q + self.tied_right_Q + 1) / (self.tied_right_Q + 1)

    def within(self, k: int) -> np.ndarray:
        """The probability that a right item is among the first k; 0 or 1 where nothing is tied."""
        slots_Q, tied_Q = k - self.before_Q, self.tied_wrong_Q + self.tied_right_Q
        # All slots are taken by wrong ones: C(wrong, slots) / C(tied, slots), a factor for each slot.
        missed_Q = np.ones(len(slots_Q))
        for slot in range(k):
            share_Q = np.maximum(self.tied_wrong_Q - slot, 0) / np.maximum(tied_Q - slot, 1)
            missed_Q *= np.where(slot < slots_Q, share_Q, 1)
        return 1 - missed_Q

    @classmethod
    def last(cls, queries: int, gallery: int) -> "Ranked":
        """Every query's only right item is the last."""
        return cls(np.full(queries, gallery - 1), np.zeros(queries, np.int64), np.ones(queries, np.int64))

    def put(self, rows: np.ndarray | slice, other: "Ranked") -> None:
        """Write another's queries over these rows."""
        for name, values in vars(self).items():
            values[rows] = getattr(other, name)


@dataclass(frozen=True)
class RetrievalRanks:
    """Both ways."""

    i2t: Ranked
    """For each of N pictures, its best own caption among all M captions."""
    t2i: Ranked
    """For each of M captions, its picture among all N pictures."""


def retrieval_ranks(
    pictures_ND: np.ndarray,
    captions_MD: np.ndarray,
    caption_picture_M: np.ndarray,
    *,
    unreadable: Sequence[int] = (),
    cells: int = CELLS_AT_ONCE,
) -> RetrievalRanks:
    """Ranks by dot product (cosine for L2-normalised embeddings). Memory: so many `cells` of the N x M scores at a time.

    Args:
        unreadable: pictures without an embedding. They stand before nothing; they and their captions have the last rank.

    Raises:
        ValueError: for embeddings that are not finite, which would otherwise rank first.
    """
    for what, embeddings in (("picture", pictures_ND), ("caption", captions_MD)):
        if not np.isfinite(embeddings).all():
            raise ValueError(f"{(~np.isfinite(embeddings)).any(1).sum()} {what} embeddings are not finite")
    pictures, captions = len(pictures_ND), len(captions_MD)
    picture_N = np.delete(np.arange(pictures), unreadable)
    caption_M = np.flatnonzero(~np.isin(caption_picture_M, unreadable))
    i2t, t2i = Ranked.last(pictures, captions), Ranked.last(captions, pictures)
    # Without a copy where all are there.
    there_ND = pictures_ND[picture_N] if len(unreadable) else pictures_ND
    theirs_MD = captions_MD[caption_M] if len(unreadable) else captions_MD
    i2t.put(picture_N, ranked(there_ND, captions_MD, picture_N, caption_picture_M, cells))
    t2i.put(caption_M, ranked(theirs_MD, there_ND, caption_picture_M[caption_M], picture_N, cells))
    return RetrievalRanks(i2t, t2i)


def ranked(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    query_of_Q: np.ndarray,
    item_of_G: np.ndarray,
    cells: int = CELLS_AT_ONCE,
) -> Ranked:
    """A gallery item is right for a query when both belong to the same picture; each query has one at least."""
    found = Ranked.last(len(queries_QD), len(gallery_GD))
    order_G = np.argsort(item_of_G, kind="stable")
    first_Q = np.searchsorted(item_of_G[order_G], query_of_Q, side="left")
    right_Q = np.searchsorted(item_of_G[order_G], query_of_Q, side="right") - first_Q
    chunk = max(1, cells // len(gallery_GD))
    for start in range(0, len(queries_QD), chunk):
        here = slice(start, start + chunk)
        scores_CG = queries_QD[here] @ gallery_GD.T
        right_C = right_Q[here]
        begin_C = np.cumsum(right_C) - right_C
        row_R = np.repeat(np.arange(len(right_C)), right_C)
        column_R = order_G[np.arange(len(row_R)) - begin_C[row_R] + first_Q[here][row_R]]
        score_R = scores_CG[row_R, column_R]
        best_C = np.maximum.reduceat(score_R, begin_C)
        before_C = np.count_nonzero(scores_CG > best_C[:, None], axis=1)
        tied_C = np.count_nonzero(scores_CG == best_C[:, None], axis=1)
        tied_right_C = np.add.reduceat((score_R == best_C[row_R]).astype(np.int64), begin_C)
        found.put(here, Ranked(before_C, tied_C - tied_right_C, tied_right_C))
    return found


def selected(
    pictures_ND: np.ndarray, captions_MD: np.ndarray, caption_picture_M: np.ndarray, right_M: np.ndarray
) -> Ranked:
    """For each picture with a choice of captions, as in SugarCrepe: its best right one among them."""
    score_M = np.einsum("md,md->m", pictures_ND[caption_picture_M], captions_MD)
    right_M = right_M.astype(bool)
    best_N = np.full(len(pictures_ND), -np.inf)
    np.maximum.at(best_N, caption_picture_M[right_M], score_M[right_M])

    def count(mask_M: np.ndarray) -> np.ndarray:
        return np.bincount(caption_picture_M[mask_M], minlength=len(pictures_ND))

    tied_M = score_M == best_N[caption_picture_M]
    before_M = score_M > best_N[caption_picture_M]
    return Ranked(count(before_M), count(tied_M & ~right_M), count(tied_M & right_M))


def rank_percent(ranks: np.ndarray, gallery: int) -> np.ndarray:
    """Share of the other gallery items that stand before the right one, in percent: 0 is best; random order gives 50 with one
    right item in the gallery."""
    return 100 * (ranks - 1) / (gallery - 1)


def chance_recall(k: int, gallery: int, right: np.ndarray) -> float:
    """R@k in percent of a random order, for queries with `right` matching items each."""
    counts, queries = np.unique(right, return_counts=True)
    misses = [comb(gallery - int(r), min(k, gallery)) / comb(gallery, min(k, gallery)) for r in counts]
    return float(100 * (1 - np.average(misses, weights=queries)))


def chance_rank_percent(gallery: int, right: np.ndarray) -> float:
    """Mean rank in percent of a random order: the best of r among G stands at (G+1)/(r+1) on average; 50 for r = 1."""
    return float(rank_percent((gallery + 1) / (np.asarray(right) + 1), gallery).mean())


def chance_median_rank(gallery: int, right: np.ndarray) -> float:
    """Median rank of a random order, for queries with `right` matching items each: (G + 1) / 2 for one."""
    counts, queries = np.unique(right, return_counts=True)

    def share_within(rank: int) -> float:
        misses = [comb(gallery - rank, int(r)) / comb(gallery, int(r)) for r in counts]
        return float(1 - np.average(misses, weights=queries))

    ranks = range(1, gallery + 1)
    lower = bisect_left(ranks, 0.5 - EXACT, key=share_within)
    upper = bisect_left(ranks, 0.5 + EXACT, key=share_within)
    return (ranks[lower] + ranks[upper]) / 2
