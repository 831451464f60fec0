"""Processes: whether one of this machine is alive, and workers that are spawned and end with their parent.

Workers are spawned, not forked, because torch and img2dataset's threads do not survive a fork; and they end when their parent
does, so a `kill -9` leaves nobody behind who still writes.
"""

import logging
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_BOOT, _PROCESS_NUMBERS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
NOISY_LOGGERS = ("botocore", "urllib3", "fsspec", "s3fs", "aiobotocore", "httpx", "faiss")


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


def worker_pool(
    workers: int, environment: Mapping[str, str], start: Callable[..., None], *arguments: Any
) -> ProcessPoolExecutor:
    """A pool of spawned processes that end with this one; `start(*arguments)` is called first in each.

    Args:
        environment: variables set in each before anything is imported there, such as OMP_NUM_THREADS.
    """
    return ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(dict(environment), start, *arguments),
    )


def stop_workers(pool: ProcessPoolExecutor, within_s: float = 5) -> None:
    """End a pool's processes. One that is in the middle of its work (the run was stopped) is killed: work is resumable."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.join(timeout=within_s)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def command_script_hidden() -> Iterator[None]:
    """Keep a spawned process from importing the script of an installed command: `dagster`'s would cost each worker 3 seconds."""
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is None or Path(script).parent != Path(sys.executable).parent:
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = script


def quiet_logging() -> None:
    """Logging of a worker or a command: ours, and of the libraries below it only what is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in NOISY_LOGGERS:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _start_worker(environment: Mapping[str, str], start: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    quiet_logging()
    end_with_parent()
    start(*arguments)


@cache
def end_with_parent() -> None:
    """Let this process end when the one that spawned it does, however that ends.

    Also a plugin of vLLM (pyproject.toml), which loads it in the engine's own process: left alone, that one outlives a killed
    worker and holds the GPU's memory.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), name="end with parent", daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
