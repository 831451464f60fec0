"""Ordered delivery from a background thread that survives an outage of the other side.

Whoever puts something in never waits. While the other side can't be reached, items stay in a bounded buffer; that is said
once, and they are delivered when it answers again.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """A bounded queue and the thread that empties it.

    Args:
        where: the other side, for messages.
        deliver: delivers some items from the head of the queue. They leave the queue when it returns, and also when it
            raises what is no outage: then they are logged as refused.
        is_outage: whether waiting may mend an error of `deliver`.
        together: how many items from the head go into one delivery, at least one.
        expendable: whether an item may be dropped when the buffer is full; the oldest such goes first.
    """

    def __init__(
        self,
        where: str,
        deliver: Callable[[list[Item]], None],
        is_outage: Callable[[Exception], bool],
        together: Callable[[deque[Item]], int],
        expendable: Callable[[Item], bool],
        max_buffered: int,
    ) -> None:
        self.where = where
        self.dropped = 0
        self.refused = 0
        self._deliver, self._is_outage, self._together, self._expendable = deliver, is_outage, together, expendable
        self._max_buffered = max_buffered
        self._pending: deque[Item] = deque()
        self._in_flight = 0
        self._changed = threading.Condition()
        self._unreachable = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"outbox {where}", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        with self._changed:
            if len(self._pending) >= self._max_buffered and not self._make_room():
                self.dropped += 1
                return
            self._pending.append(item)
            self._changed.notify_all()

    def flush(self, timeout_s: float, or_outage: bool = False) -> bool:
        """Wait until everything is delivered, or (if asked) known to be undeliverable now; whether everything is."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending or (or_outage and self._unreachable), timeout_s)
            return not self._pending

    def close(self, timeout_s: float) -> None:
        """Deliver what is left, at most for so long; say what was lost."""
        delivered = self.flush(timeout_s)
        with self._changed:
            if not delivered:
                logger.error(
                    "%d items were not delivered to %s: it stayed out of reach", len(self._pending), self.where
                )
            if self.dropped:
                logger.error("%d items for %s were dropped while it was out of reach", self.dropped, self.where)
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _make_room(self) -> bool:
        for position in range(self._in_flight, len(self._pending)):
            if self._expendable(self._pending[position]):
                if not self.dropped:
                    logger.error(
                        "the buffer for %s is full (%d): the oldest are dropped", self.where, self._max_buffered
                    )
                del self._pending[position]
                self.dropped += 1
                return True
        return False

    def _run(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
                if self._stopping:
                    return
                self._in_flight = self._together(self._pending)
                items = [self._pending[position] for position in range(self._in_flight)]
            try:
                self._deliver(items)
            except Exception as error:
                if self._is_outage(error):
                    self._note_outage(error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopping, timeout=pause_s)
                    pause_s = min(2 * pause_s, RETRY_MAX_S)
                    continue
                logger.exception("%s refused %s; it is left out", self.where, items[0])
                self.refused += len(items)
            pause_s = RETRY_FIRST_S
            with self._changed:
                if self._unreachable:
                    logger.warning("%s answers again", self.where)
                self._unreachable = False
                for _ in items:
                    self._pending.popleft()
                self._in_flight = 0
                self._changed.notify_all()

    def _note_outage(self, error: Exception) -> None:
        with self._changed:
            if self._unreachable:
                return
            self._unreachable = True
            self._changed.notify_all()
        message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        logger.warning(
            "%s can't be reached (%s). Work goes on; what is sent is buffered and delivered later.", self.where, message
        )
