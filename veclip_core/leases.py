"""A lease on a part: two runs never do, and never pay for, the same work at the same time.

A lease is a numbered file, `part-00000.lease-000007.json`. To take a part one creates the next number, which only one process
can do (put-if-absent); only its creator ever writes it again. So no lock service is needed, on a disk or in S3. A lease
counts as gone when it was released, when its heartbeat is older than `TTL_S`, or when its process on this machine is dead.
"""

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from veclip_core import storage
from veclip_core.mendable import Mendable
from veclip_core.processes import machine, process_started

logger = logging.getLogger(__name__)

TTL_S = 90.0
"""How long a silent owner is waited for. Generous: a busy machine may not get to its heartbeat for a while."""
HEARTBEAT_S = 15.0
POLL_S = 2.0

_NAME = re.compile(r"^(?P<what>.+)\.lease-(?P<number>\d+)\.json$")


class LeaseLost(Mendable):
    """Another process took the part over because this one was silent too long; its work must not be committed."""


class Lease:
    """One held lease; a thread keeps it alive until it is released."""

    def __init__(self, folder: str, what: str, number: int) -> None:
        self._folder, self._what, self._number = folder, what, number
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._beat = time.monotonic()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(cls, folder: str, what: str) -> Self | None:
        """The lease on `what`, or None while another process holds it."""
        newest = _newest(folder, what)
        if newest is not None and not _is_gone(newest[1]):
            return None
        lease = cls(folder, what, 0 if newest is None else newest[0] + 1)
        if not storage.create_json(lease._uri(lease._number), lease._record()):
            return None
        # Since the look others may have held it, and tidied this number away: only the newest holds.
        newest = _newest(folder, what)
        if newest is not None and newest[0] > lease._number:
            storage.delete(lease._uri(lease._number))
            return None
        for number in range(max(0, lease._number - 2), lease._number):
            storage.delete(lease._uri(number))
        lease._thread = threading.Thread(target=lease._keep_alive, name=f"lease {what}", daemon=True)
        lease._thread.start()
        return lease

    @classmethod
    def wait_for(cls, folder: str, what: str) -> Self:
        """The lease on `what`, once nobody else holds it."""
        said = False
        while (lease := cls.acquire(folder, what)) is None:
            if not said:
                logger.info("waiting for %s in %s, which %s works on", what, folder, holder(folder, what))
                said = True
            time.sleep(POLL_S)
        return lease

    def check(self) -> None:
        """Raises LeaseLost when the part is no longer ours."""
        if self._lost or time.monotonic() - self._beat > TTL_S:
            raise LeaseLost(
                f"{self._what}: this run was silent for so long that another may have taken it over, so it stops here."
                " Run the same command again: it resumes."
            )

    def release(self) -> None:
        self.fall_silent()
        if not self._lost:
            storage.write_json(self._uri(self._number), {**self._record(), "released": True})

    def fall_silent(self) -> None:
        """Keep it alive no longer: it ends with this process, or after `TTL_S`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _uri(self, number: int) -> str:
        return storage.join(self._folder, f"{self._what}.lease-{number:06d}.json")

    def _record(self) -> dict[str, Any]:
        return {
            "host": machine(),
            "pid": os.getpid(),
            "process_started": process_started(os.getpid()),
            "token": self._token,
            "heartbeat": time.time(),
            "released": False,
        }

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if storage.exists(self._uri(self._number + 1)):
                    self._lost = True
                    logger.error("the lease on %s was taken over", self._what)
                    return
                storage.write_json(self._uri(self._number), self._record())
                self._beat = time.monotonic()
            except Exception as error:
                # An object store's client has many kinds. It is tried again; `check` tells when it lasts too long.
                logger.warning("the lease on %s could not be renewed: %s", self._what, error)


def release_all(leases: Iterable[Lease]) -> None:
    """Release leases, if the storage can be written still: what it says otherwise has been said by whoever met it first."""
    reachable = True
    for lease in leases:
        try:
            if reachable:
                lease.release()
        except storage.StorageError as error:
            logger.warning("%s", error)
            reachable = False
        lease.fall_silent()


def holder(folder: str, what: str) -> str | None:
    """Who holds the part, as `host:pid`, or None; for messages."""
    newest = _newest(folder, what)
    if newest is None or _is_gone(newest[1]):
        return None
    return f"{newest[1]['host']}:{newest[1]['pid']}"


def _newest(folder: str, what: str) -> tuple[int, dict[str, Any]] | None:
    numbers = [
        int(match["number"])
        for name in storage.list_files(folder)
        if (match := _NAME.match(name)) is not None and match["what"] == what
    ]
    while numbers:
        number = max(numbers)
        try:
            return number, storage.read_json(storage.join(folder, f"{what}.lease-{number:06d}.json"))
        except FileNotFoundError:  # a later owner tidied it away between the listing and the reading
            return _newest(folder, what)
    return None


def _is_gone(record: dict[str, Any]) -> bool:
    if record["released"] or time.time() - record["heartbeat"] > TTL_S:
        return True
    if record["host"] != machine():
        return False
    return process_started(record["pid"]) != record["process_started"]
