"""Zero-shot retrieval, image to text (i2t) and text to image (t2i): the rank of the right match for every query.

Everything else (R@K, mean recall, mean rank, intervals) follows from the ranks. R@K is that of CLIP papers and of
LAION-AI/CLIP_benchmark: a query counts when at least one right match is among the first K. Shapes: N pictures, M captions.
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
class RetrievalRanks:
    """1-based ranks. Ties take the middle: a match that shares its score with e wrong items stands at its best place + e/2,
    so that a model which gives one score to everything gets the rank of chance and no recall."""

    i2t_N: np.ndarray
    """For each picture, the rank of its best own caption among all M captions."""
    t2i_M: np.ndarray
    """For each caption, the rank of its picture among all N pictures."""


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
    i2t_N, t2i_M = np.full(pictures, float(captions)), np.full(captions, float(pictures))
    # Without a copy where all are there.
    there_ND = pictures_ND[picture_N] if len(unreadable) else pictures_ND
    theirs_MD = captions_MD[caption_M] if len(unreadable) else captions_MD
    i2t_N[picture_N] = best_ranks(there_ND, captions_MD, picture_N, caption_picture_M, cells)
    t2i_M[caption_M] = best_ranks(theirs_MD, there_ND, caption_picture_M[caption_M], picture_N, cells)
    return RetrievalRanks(i2t_N, t2i_M)


def best_ranks(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    query_of_Q: np.ndarray,
    item_of_G: np.ndarray,
    cells: int = CELLS_AT_ONCE,
) -> np.ndarray:
    """A gallery item is right for a query when both belong to the same picture; each query has one at least."""
    ranks_Q = np.empty(len(queries_QD))
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
        ranks_Q[here] = 1 + before_C + (tied_C - tied_right_C) / 2
    return ranks_Q


def selected(
    pictures_ND: np.ndarray, captions_MD: np.ndarray, caption_picture_M: np.ndarray, right_M: np.ndarray
) -> np.ndarray:
    """For each picture with a choice of captions, as in SugarCrepe: whether a right one scores above every wrong one [N]."""
    score_M = np.einsum("md,md->m", pictures_ND[caption_picture_M], captions_MD)
    best_N2 = np.full((len(pictures_ND), 2), -np.inf)
    np.maximum.at(best_N2, (caption_picture_M, right_M.astype(np.int64)), score_M)
    return np.asarray(best_N2[:, 1] > best_N2[:, 0])


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
