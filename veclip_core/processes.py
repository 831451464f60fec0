"""Whether a process of this machine is alive: what leases and scratch folders of killed runs are known by."""

import os
import socket
from functools import cache
from pathlib import Path

_BOOT, _PROCESS_NUMBERS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


@cache
def machine() -> str:
    """Names where process numbers mean something: a host since its boot, or one container of it.

    The host's name alone is not enough: containers may share it and still number their processes apart.
    """
    host = socket.gethostname()
    if not _BOOT.exists():  # no Linux
        return host
    return f"{host}-{_BOOT.read_text()[:8]}-{os.stat(_PROCESS_NUMBERS).st_ino}"


def process_started(pid: int) -> float | None:
    """When a process of this machine started, which tells it from a later one of the same number; None when it is dead."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None
