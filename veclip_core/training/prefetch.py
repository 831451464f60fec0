"""Reading the next batch while one is trained on."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from veclip_core.training.data import Batch, Batches


class Prefetched:
    """The batches of steps [first, end), each prepared while the one before it is trained on."""

    def __init__(self, batches: Batches, first: int, end: int) -> None:
        self._batches, self._first, self._end = batches, first, end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.waited_s = 0.0
        """For batches that were not ready when they were asked for."""

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        ahead = self._pool.submit(self._batches.at, self._first)
        for step in range(self._first, self._end):
            asked = time.perf_counter()
            batch = ahead.result()
            self.waited_s += time.perf_counter() - asked
            if step + 1 < self._end:
                ahead = self._pool.submit(self._batches.at, step + 1)
            yield batch
