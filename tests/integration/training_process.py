"""A training in a process of its own, which kills itself at a named point."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from tests.unit.training_world import TINY
from veclip_core import storage
from veclip_core.tracking import MlflowTracker, NoTracker
from veclip_core.training.checkpoint import Checkpoint
from veclip_core.training.loop import train
from veclip_core.training.manifest_table import load_manifest
from veclip_core.training.report import Runtime

MANIFEST = ["mix/00000.parquet", "mix/00001.parquet"]


def run(source: str, folder: Path, point: str = "never", tracking_uri: str | None = None) -> tuple[int, list[Any]]:
    """Exit code (negative: the signal that ended it), and what the process wrote: its steps, at the end its report.

    The process is forked from a server that has imported torch but computed nothing: it starts in no time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "open_clip", "tests.integration.training_process"])
    log = folder.with_name(f"{folder.name}-{point}.jsonl")
    process = context.Process(target=_train, args=(source, str(folder), point, str(log), tracking_uri))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "hangs"
    return process.exitcode, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def shards_of(checkpoint: Checkpoint) -> dict[str, dict[str, bytes]]:
    """What a checkpoint holds to go on from, by file and tensor: the header of a safetensors file has no order of its own."""
    from safetensors.torch import load_file

    files = (Path(checkpoint.uri) / "training").iterdir()
    return {path.name: {name: one.numpy().tobytes() for name, one in load_file(path).items()} for path in files}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _train(source: str, folder: str, point: str, log: str, tracking_uri: str | None) -> None:
    publish_file, write_json = storage.publish_file, storage.write_json

    def publish(source: Path, uri: str) -> None:
        if point == "before_move" and "step-000008" in uri:
            _die()
        publish_file(source, uri)
        if point == "between_files" and "step-000008/model" in uri:
            _die()

    def write(uri: str, value: Any) -> None:
        if point == "before_marker" and "step-000008.success" in uri:
            _die()
        write_json(uri, value)
        if point == "after_marker" and "step-000008.success" in uri:
            _die()

    storage.publish_file, storage.write_json = publish, write
    with open(log, "a", buffering=1) as lines:

        def progress(step: int, _metrics: object) -> None:
            lines.write(f"{step}\n")
            if point == f"at_step_{step}":
                _die()
            if point == f"sigterm_at_step_{step}":
                os.kill(os.getpid(), signal.SIGTERM)

        tracker = NoTracker() if tracking_uri is None else MlflowTracker(tracking_uri, str(Path(source) / "artifacts"))
        runtime = Runtime(Path(source) / "cache", threads=1, log_every_steps=1, checkpoint_every_steps=4, device="cpu")
        manifest = load_manifest(source, MANIFEST)
        report = train(TINY, manifest, folder, runtime=runtime, tracker=tracker, on_progress=progress)
        lines.write(json.dumps({"resumed_at": report.resumed_at}) + "\n")
