"""Kills a run at a named point of publishing a shard, as a power cut would.

Python imports this by its name at start-up when its folder is on PYTHONPATH, in spawned workers too. VECLIP_TEST_KILL is
`<stage>:<part/shard>:<point>[:worker]` with point `before_move`, `before_marker` or `after_marker`. The whole run dies; with
`worker` only the process that does the shard, and only once (VECLIP_TEST_KILLED names a file that remembers it).
"""

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
    if whole_run:
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


if _instruction:
    _stage, _shard, _point, *_who = _instruction.split(":")
    _install(_stage, _shard, _point, whole_run=_who != ["worker"])
