"""Checkpoints: all a training needs to go on as if nothing had happened, published whole or not at all.

    {folder}/step-000100/model.safetensors            weights to evaluate: the average where one is kept
    {folder}/step-000100/training/*.safetensors       weights, optimizer, average: a shard a rank (torch.distributed.checkpoint)
    {folder}/step-000100/state.json                   recipe, model, vocabulary, counts, run id
    {folder}/step-000100.success.json                 the marker, written last: digests of them all

A folder without its marker is what a killed process left: it is never read, and removed by the next save. Nothing here is
unpickled.
"""

import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core import storage
from veclip_core.mendable import Mendable
from veclip_core.training.world import World

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the last, and the one before it should the last turn out damaged."""

WEIGHTS, TRAINING, STATE = "model.safetensors", "training", "state.json"
_MARKER = re.compile(r"^step-(\d{6,})\.success\.json$")
_COPIED_AT_ONCE = 1 << 22


class DamagedCheckpoint(Mendable):
    """A file differs from what its marker says."""


class OtherFormat(Mendable):
    """A checkpoint that can be evaluated, but not gone on from."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint; its marker exists."""

    folder: str
    """The training's folder, path or URL."""
    step: int
    """Steps done."""

    @property
    def name(self) -> str:
        return f"step-{self.step:06d}"

    @property
    def uri(self) -> str:
        return storage.join(self.folder, self.name)

    @property
    def marker(self) -> str:
        return storage.join(self.folder, f"{self.name}.success.json")

    def weights(self) -> "dict[str, torch.Tensor]":
        """Raises DamagedCheckpoint when the file isn't the one that was saved."""
        from safetensors.torch import load

        return load(self._bytes(WEIGHTS))

    def state(self) -> dict[str, Any]:
        """Raises DamagedCheckpoint when the file isn't the one that was saved."""
        state: dict[str, Any] = json.loads(self._bytes(STATE))
        return state

    def read_into(self, tensors: "dict[str, torch.Tensor]", world: World) -> None:
        """Fill a training's tensors, which may be sharded otherwise than they were saved.

        Raises:
            DamagedCheckpoint: when a file isn't the one that was saved.
            OtherFormat: where there are none for going on.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        digests = storage.read_json(self.marker)["sha256"]
        shards = {name: digest for name, digest in digests.items() if name.startswith(f"{TRAINING}/")}
        if not shards:
            raise OtherFormat(
                f"{self.uri} was written by an earlier version, and can't be gone on from: delete {self.folder} to begin anew"
            )
        with self._local(shards, world) as folder:
            plainly_alone()
            dcp.load(
                tensors,
                storage_reader=HuggingFaceStorageReader(str(folder)),
                process_group=world.talk,
                no_dist=world.ranks == 1,
            )

    @contextmanager
    def _local(self, shards: dict[str, str], world: World) -> Iterator[Path]:
        """The folder of the shards, compared with their digests, on this machine's disk."""
        if storage.is_local(self.folder):
            local = storage.local_path(self.uri)

            def compare() -> None:
                for name in sorted(shards)[world.rank :: world.ranks]:  # each is read by one rank, for all
                    self._compare(name, digest_of_file(local / name), shards[name])

            world.all_do(compare)
            yield local / TRAINING
            return
        with storage.scratch_folder(self.folder) as own:
            # They are gigabytes: of the ranks that see one another's folders, which share a disk, the first fetches them for all.
            shared = next(folder for folder in world.gathered(own) if folder.is_dir())
            world.all_do(lambda: self._fetch(shards, shared) if shared == own else None)
            yield shared / TRAINING
            world.gathered(None)  # all have read

    def _fetch(self, shards: dict[str, str], folder: Path) -> None:
        (folder / TRAINING).mkdir()
        for name, digest in shards.items():
            with (
                storage.fatal_errors_named(str(folder)),
                storage.open_read(storage.join(self.uri, name)) as source,
                open(folder / name, "wb") as target,
            ):
                shutil.copyfileobj(source, target, _COPIED_AT_ONCE)
            self._compare(name, digest_of_file(folder / name), digest)

    def _bytes(self, file: str) -> bytes:
        data = storage.read_bytes(storage.join(self.uri, file))
        self._compare(file, hashlib.sha256(data).hexdigest(), storage.read_json(self.marker)["sha256"][file])
        return data

    def _compare(self, file: str, found: str, saved: str) -> None:
        if found != saved:
            raise DamagedCheckpoint(
                f"{self.uri}/{file} is damaged. Delete {self.marker}: the next start goes on from the checkpoint before it."
            )


def list_checkpoints(folder: str) -> list[Checkpoint]:
    """The finished ones, by step."""
    matches = (_MARKER.match(name) for name in storage.list_files(folder))
    return [Checkpoint(folder, step) for step in sorted(int(match[1]) for match in matches if match)]


def latest(folder: str) -> Checkpoint | None:
    found = list_checkpoints(folder)
    return found[-1] if found else None


def find(uri: str) -> Checkpoint:
    """The checkpoint at a uri: a `step-...` folder, or the last one of a training's folder.

    Raises:
        FileNotFoundError: with the command's next move.
    """
    parent, _, name = uri.rstrip("/").rpartition("/")
    match = re.match(r"^step-(\d{6,})$", name)
    if match:
        checkpoint = Checkpoint(parent, int(match[1]))
        if storage.exists(checkpoint.marker):
            return checkpoint
    elif (last := latest(uri)) is not None:
        return last
    raise FileNotFoundError(f"no finished checkpoint at {uri}: train first, or name the training's folder")


def remove_all_but(folder: str, kept: list[Checkpoint]) -> None:
    """Remove other checkpoints, and what killed processes left of some. Markers first: a half-removed one must not look whole."""
    names = {checkpoint.name for checkpoint in kept}
    others: dict[str, list[str]] = {}
    for file in storage.list_files(folder):
        match = re.match(r"^(step-\d{6,})[./]", file)
        if match and match[1] not in names:
            others.setdefault(match[1], []).append(file)
    for name, files in others.items():
        for file in sorted(files, key=lambda file: _MARKER.match(file) is None):
            storage.delete(storage.join(folder, file))
        if storage.is_local(folder):
            shutil.rmtree(storage.local_path(storage.join(folder, name)), ignore_errors=True)


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plainly_alone() -> None:
    """Let torch not wonder at each save whether a single process was meant."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
