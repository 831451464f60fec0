"""Kills a run at a named point, or at its n-th change of what is stored, as a power cut would.

Python imports this by its name at start-up when its folder is on PYTHONPATH, in spawned workers too. VECLIP_TEST_KILL is one of

- `<stage>:<part/shard>:<point>[:worker]`, points of publishing a shard: `before_move`, `before_marker`, `after_marker`. The whole
  run dies; with `worker` only the process that does the shard, and only once (VECLIP_TEST_KILLED names a file that remembers it).
- `scan::<point>`, points of reading a URL list: `reading`, `sorting`, `sorted`.
- `change::<n>`: the n-th change that the run's processes make to any storage, counted by the bytes of the file that
  VECLIP_TEST_CHANGES names. Of an even n the change is not made any more.
"""

import functools
import multiprocessing
import os
import signal
from pathlib import Path

_instruction = os.environ.get("VECLIP_TEST_KILL", "")


def _die(whole_run: bool) -> None:
    memory = os.environ.get("VECLIP_TEST_KILLED")
    if memory:
        if Path(memory).exists():
            return
        Path(memory).touch()
    if whole_run and multiprocessing.parent_process() is not None:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _install(stage: str, shard: str, point: str, whole_run: bool) -> None:
    from veclip_core import storage

    publish_file, write_json = storage.publish_file, storage.write_json

    def here(uri: str) -> bool:
        return f"/{stage}/" in uri and f"/{shard}." in uri

    def killing_publish(source, uri):
        if here(uri) and point == "before_move":
            _die(whole_run)
        publish_file(source, uri)

    def killing_write(uri, value):
        marker = here(uri) and uri.endswith(".success.json")
        if marker and point == "before_marker":
            _die(whole_run)
        write_json(uri, value)
        if marker and point == "after_marker":
            _die(whole_run)

    storage.publish_file, storage.write_json = killing_publish, killing_write


def _install_in_scan(point: str) -> None:
    from veclip_core.sources import list_urls, urls

    read, sort = urls.UrlList.read, list_urls._sort

    def killing_read(self):
        for number, row in enumerate(read(self)):
            if number == 5 and point == "reading":
                _die(whole_run=True)
            yield row

    def killing_sort(spool, path):
        if point == "sorting":
            _die(whole_run=True)
        sort(spool, path)
        if point == "sorted":
            _die(whole_run=True)

    urls.UrlList.read, list_urls._sort = killing_read, killing_sort


def _install_at_change(last: int) -> None:
    from veclip_core import storage

    counted = os.environ["VECLIP_TEST_CHANGES"]

    def killing(change):
        @functools.wraps(change)
        def changed(*arguments, **named):
            with open(counted, "ab") as file:
                file.write(b".")
                file.flush()
                number = os.fstat(file.fileno()).st_size
            if number == last and not last % 2:
                _die(whole_run=True)
            result = change(*arguments, **named)
            if number == last:
                _die(whole_run=True)
            return result

        return changed

    for name in ("publish_file", "write_bytes", "create_json", "delete"):
        setattr(storage, name, killing(getattr(storage, name)))


if _instruction:
    _stage, _shard, _point, *_who = _instruction.split(":")
    if _stage == "scan":
        _install_in_scan(_point)
    elif _stage == "change":
        _install_at_change(int(_point))
    else:
        _install(_stage, _shard, _point, whole_run=_who != ["worker"])
