"""Checkpoints: all a training needs to go on as if nothing had happened, published whole or not at all.

    {folder}/step-000100/model.safetensors    weights
    {folder}/step-000100/training.pt          optimizer and random state (read back with weights_only=True)
    {folder}/step-000100/state.json           recipe, model, vocabulary, counts, run id
    {folder}/step-000100.success.json         the marker, written last: digests of the three

A folder without its marker is what a killed process left: it is never read, and overwritten by the next save of that step.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core import storage
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the last, and the one before it should the last turn out damaged."""

WEIGHTS, TRAINING, STATE = "model.safetensors", "training.pt", "state.json"
_MARKER = re.compile(r"^step-(\d{6,})\.success\.json$")


class DamagedCheckpoint(Mendable):
    """A file differs from what its marker says."""


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

    def _bytes(self, file: str) -> bytes:
        """Raises DamagedCheckpoint when the file isn't the one that was saved."""
        data = storage.read_bytes(storage.join(self.uri, file))
        if hashlib.sha256(data).hexdigest() != storage.read_json(self.marker)["sha256"][file]:
            raise DamagedCheckpoint(
                f"{self.uri}/{file} is damaged. Delete {self.marker}: the next start goes on from the checkpoint before it."
            )
        return data

    def weights(self) -> "dict[str, torch.Tensor]":
        from safetensors.torch import load

        return load(self._bytes(WEIGHTS))

    def training(self) -> dict[str, Any]:
        """`optimizer` and `rng`."""
        import torch

        loaded: dict[str, Any] = torch.load(io.BytesIO(self._bytes(TRAINING)), weights_only=True, map_location="cpu")
        return loaded

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._bytes(STATE))
        return state


def save(
    folder: str,
    step: int,
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    state: Mapping[str, Any],
    keep: int = KEPT,
) -> Checkpoint:
    """Publish the files, then the marker; then drop all but the last `keep`."""
    import torch
    from safetensors.torch import save_file

    checkpoint = Checkpoint(folder, step)
    storage.delete(checkpoint.marker)
    digests = {}
    with storage.scratch_folder(folder) as scratch:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        with storage.fatal_errors_named(folder):
            save_file(weights, scratch / WEIGHTS)
            torch.save({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, scratch / TRAINING)
            (scratch / STATE).write_text(json.dumps(state, allow_nan=False))
        for file in (WEIGHTS, TRAINING, STATE):
            digests[file] = _sha256(scratch / file)
            storage.publish_file(scratch / file, storage.join(checkpoint.uri, file))
    storage.write_json(checkpoint.marker, {"step": step, "sha256": digests})
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return checkpoint


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


def _remove(checkpoint: Checkpoint) -> None:
    """The marker first: a half-removed checkpoint must not look like one."""
    storage.delete(checkpoint.marker)
    for file in (WEIGHTS, TRAINING, STATE):
        storage.delete(storage.join(checkpoint.uri, file))
    if storage.is_local(checkpoint.uri):
        storage.local_path(checkpoint.uri).rmdir()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
