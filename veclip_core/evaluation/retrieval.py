"""Zero-shot retrieval, image to text (i2t) and text to image (t2i): the rank of the right match for every query.

Everything else (R@K, mean recall, mean rank, intervals) follows from the ranks. R@K is that of CLIP papers and of
LAION-AI/CLIP_benchmark: a query counts when at least one right match is among the first K. Shapes: N pictures, M captions.
"""

from dataclasses import dataclass
from math import comb

import numpy as np

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalRanks:
    """1-based ranks. Ties take the middle: a match that shares its score with e wrong items stands at its best place + e/2,
    so that a model which gives one score to everything gets the rank of chance and no recall."""

    i2t_N: np.ndarray
    """For each picture, the rank of its best own caption among all M captions."""
    t2i_M: np.ndarray
    """For each caption, the rank of its picture among all N pictures."""


def retrieval_ranks(
    pictures_ND: np.ndarray, captions_MD: np.ndarray, caption_picture_M: np.ndarray, *, chunk: int = 2048
) -> RetrievalRanks:
    """Ranks by dot product (cosine for L2-normalised embeddings). Memory: chunk x max(N, M) scores at a time.
    Raises ValueError on embeddings that are not finite, which would otherwise rank first."""
    for what, embeddings in (("picture", pictures_ND), ("caption", captions_MD)):
        if not np.isfinite(embeddings).all():
            raise ValueError(f"{(~np.isfinite(embeddings)).any(1).sum()} {what} embeddings are not finite")
    picture_N = np.arange(len(pictures_ND))
    return RetrievalRanks(
        i2t_N=best_ranks(pictures_ND, captions_MD, picture_N, caption_picture_M, chunk),
        t2i_M=best_ranks(captions_MD, pictures_ND, caption_picture_M, picture_N, chunk),
    )


def best_ranks(
    queries_QD: np.ndarray, gallery_GD: np.ndarray, query_of_Q: np.ndarray, item_of_G: np.ndarray, chunk: int
) -> np.ndarray:
    """A gallery item is right for a query when both belong to the same picture."""
    ranks_Q = np.empty(len(queries_QD))
    for start in range(0, len(queries_QD), chunk):
        here = slice(start, start + chunk)
        scores_CG = queries_QD[here] @ gallery_GD.T
        right_CG = query_of_Q[here, None] == item_of_G[None, :]
        best_C1 = np.where(right_CG, scores_CG, -np.inf).max(1, keepdims=True)
        before_C = (scores_CG > best_C1).sum(1)
        tied_wrong_C = ((scores_CG == best_C1) & ~right_CG).sum(1)
        ranks_Q[here] = 1 + before_C + tied_wrong_C / 2
    return ranks_Q


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
