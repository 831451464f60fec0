"""Which rows a step reads, as a pure function of (seed, step): by rows over the whole manifest, or by windows over its tars."""

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from veclip_core.training.recipe import Recipe

logger = logging.getLogger(__name__)

# Purposes of random streams: no two of them share numbers (`data.py` has another).
_ORDER, _PASS, _PIECES, _WINDOW = 1, 3, 4, 5
PIECE_ROWS = 128
"""Neighbours in a tar that a window takes together, and that one request reads: some 4 MB of pictures of 30 kB."""
LANES = 256
WINDOW_ROWS = 512
"""Of a lane. All lanes together shuffle 131,072 rows at a time."""
REACH_PIECES = WINDOW_ROWS // PIECE_ROWS + 2
"""That a lane reads from at a time: those of its window, with one cut off at each end."""

Sources = tuple[tuple[int, int], ...]
"""`ManifestTable.sources`: rows there are, and rows that an epoch reads, of each run of a mixture."""


class BatchPlan(Protocol):
    """Batches of whole epochs: every row once an epoch, in an order of the epoch's own; what fills no batch is left to the next."""

    @property
    def batch_size(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def share(self, step: int, rank: int, ranks: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The epoch of a step (from 0), the rows of a rank's run of its batch, and how often each was read before: its caption is
        drawn by that. The shares of all ranks one after another are the same batch, however many ranks there are."""
        ...


def plan_of(rows: int, recipe: Recipe, sources: Sources = ()) -> BatchPlan:
    """The recipe's plan for a manifest of so many rows; one smaller than a batch makes the batch smaller.

    Raises:
        ValueError: below two rows.
    """
    sources = sources or ((rows, rows),)
    read = sum(of_epoch for _, of_epoch in sources)
    if read < 2:
        raise ValueError(f"{read} row can't be trained on: contrast needs two")
    if read < recipe.batch_size:
        logger.warning(
            "the manifest has %d rows, below the batch size of %d: batches of %d", read, recipe.batch_size, read
        )
    batch_size = min(read, recipe.batch_size)
    plan = WindowPlan if recipe.order == "windows" else RowPlan
    return plan(batch_size, recipe.seed, sources)


@dataclass(frozen=True)
class RowPlan:
    """Any row beside any other: the best shuffle, for manifests whose pictures are at hand."""

    batch_size: int
    seed: int
    sources: Sources

    @property
    def steps_per_epoch(self) -> int:
        return sum(read for _, read in self.sources) // self.batch_size

    def share(self, step: int, rank: int, ranks: int) -> tuple[int, np.ndarray, np.ndarray]:
        epoch, within = divmod(step, self.steps_per_epoch)
        first, end = (within * self.batch_size + self.batch_size * share // ranks for share in (rank, rank + 1))
        rows, before = _order_of_epoch(self.seed, epoch, self.sources)
        return epoch, rows[first:end], before[first:end]


@lru_cache(maxsize=2)
def _order_of_epoch(seed: int, epoch: int, sources: Sources) -> tuple[np.ndarray, np.ndarray]:
    """Two are kept: a batch may be prepared ahead, over the end of an epoch."""
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(sum(read for _, read in sources))
    if len(sources) == 1 and sources[0][0] == sources[0][1]:
        return order, np.broadcast_to(np.int64(epoch), order.shape)
    read, before = _rows_of_epoch(seed, epoch, sources)
    return read[order], before[order]


def _rows_of_epoch(seed: int, epoch: int, sources: Sources) -> tuple[np.ndarray, np.ndarray]:
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
class WindowPlan:
    """Neighbours stay near: for manifests whose tars are far away.

    An epoch's pieces (`PIECE_ROWS` neighbours each) are shuffled, laid end to end, and cut into lanes of equal length. A batch has
    as many rows of each lane; a lane's rows are shuffled within windows. Ranks share the lanes, so that each reads tars of its own,
    piece after piece, and the batch is the same for any number of ranks. No epoch's order is ever in memory whole.
    """

    batch_size: int
    seed: int
    sources: Sources

    @property
    def lanes(self) -> int:
        return math.gcd(self.batch_size, LANES)

    @property
    def lane_rows(self) -> int:
        """Rows of a lane that an epoch reads."""
        return self.steps_per_epoch * (self.batch_size // self.lanes)

    @property
    def steps_per_epoch(self) -> int:
        return sum(read for _, read in self.sources) // self.batch_size

    def rows_in_reach(self, ranks: int) -> int:
        """Of the pieces that a rank reads from at a time."""
        return min(sum(rows for rows, _ in self.sources), -(-self.lanes // ranks) * REACH_PIECES * PIECE_ROWS)

    def share(self, step: int, rank: int, ranks: int) -> tuple[int, np.ndarray, np.ndarray]:
        epoch, within = divmod(step, self.steps_per_epoch)
        per_lane = self.batch_size // self.lanes
        first, end = (self.batch_size * share // ranks for share in (rank, rank + 1))
        rows, before = [], []
        for lane in range(first // per_lane, -(-end // per_lane)):
            of_lane, turns = self._of_lane(epoch, lane, within * per_lane, (within + 1) * per_lane)
            # A rank whose share ends within a lane takes the lane's first or last rows alone.
            own = slice(max(first - lane * per_lane, 0), min(end - lane * per_lane, per_lane))
            rows.append(of_lane[own])
            before.append(turns[own])
        return epoch, np.concatenate(rows), np.concatenate(before)

    def _of_lane(self, epoch: int, lane: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Some of a lane's rows, in its order."""
        # Windows of different lanes begin at different steps, so that new pieces are asked for evenly.
        shift = WINDOW_ROWS * lane // self.lanes
        found = [
            self._window(epoch, lane, window)[:, max(first - start, 0) : end - start]
            for window in range((first + shift) // WINDOW_ROWS, (end - 1 + shift) // WINDOW_ROWS + 1)
            for start in (max(window * WINDOW_ROWS - shift, 0),)
        ]
        rows, before = np.concatenate(found, axis=1)
        return rows, before

    def _window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        return _shuffled_window(self, epoch, lane, window)


@lru_cache(maxsize=2 * LANES)
def _shuffled_window(plan: WindowPlan, epoch: int, lane: int, window: int) -> np.ndarray:
    """Rows and how often each was read before, [2, N]."""
    shift = WINDOW_ROWS * lane // plan.lanes
    start, end = (
        lane * plan.lane_rows + min(max(place * WINDOW_ROWS - shift, 0), plan.lane_rows)
        for place in (window, window + 1)
    )
    pieces, ends = _pieces_of_epoch(plan.seed, epoch, plan.sources)
    found = []
    number = int(np.searchsorted(ends, start, side="right"))
    while start < end:
        first_row, rows, turn = pieces[number]
        skipped = start - (int(ends[number]) - int(rows))
        taken = min(int(rows) - skipped, end - start)
        found.append(np.stack([first_row + skipped + np.arange(taken), np.full(taken, turn)]))
        start, number = start + taken, number + 1
    whole = np.concatenate(found, axis=1)
    return whole[:, np.random.default_rng([plan.seed, _WINDOW, epoch, lane, window]).permutation(whole.shape[1])]


@lru_cache(maxsize=2)
def _pieces_of_epoch(seed: int, epoch: int, sources: Sources) -> tuple[np.ndarray, np.ndarray]:
    """Pieces_P3 that an epoch reads in its order (first row, rows, how often they were read before), and where each ends, laid end
    to end. Of each source the next so many rows of an endless row of passes over its pieces, each pass in an order of its own."""
    found, base = [], 0
    for number, (rows, read) in enumerate(sources):
        firsts = np.arange(0, rows, PIECE_ROWS)
        sizes = np.minimum(PIECE_ROWS, rows - firsts)
        start, end = epoch * read, (epoch + 1) * read
        for turn in range(start // rows, -(-end // rows)):
            order = np.random.default_rng([seed, _PASS, number, turn]).permutation(len(firsts))
            ends = turn * rows + np.cumsum(sizes[order])
            begins = ends - sizes[order]
            # An epoch may begin or end within a piece.
            kept_begins, kept_ends = np.maximum(begins, start), np.minimum(ends, end)
            taken = kept_ends - kept_begins
            there = taken > 0
            first_rows = base + firsts[order] + (kept_begins - begins)
            found.append(np.stack([first_rows, taken, np.full(len(order), turn)], axis=1)[there])
        base += rows
    random = np.random.default_rng([seed, _PIECES, epoch])
    pieces = np.concatenate(found)
    pieces = _begun_at(pieces[random.permutation(len(pieces))], int(random.integers(pieces[:, 1].sum())))
    return pieces, np.cumsum(pieces[:, 1])


def _begun_at(pieces_P3: np.ndarray, cut: int) -> np.ndarray:
    """The same rows in a ring, from row `cut` of them on: what an epoch leaves out is at its end: not the same always."""
    ends = np.cumsum(pieces_P3[:, 1])
    number = int(np.searchsorted(ends, cut, side="right"))
    first_row, rows, turn = pieces_P3[number]
    skipped = cut - (int(ends[number]) - int(rows))
    halves = np.array([[first_row + skipped, rows - skipped, turn], [first_row, skipped, turn]])
    turned = np.concatenate([halves[:1], pieces_P3[number + 1 :], pieces_P3[:number], halves[1:]])
    return turned[turned[:, 1] > 0]
