"""Writing checkpoints while the training goes on: copied to memory at once, written by a thread of each rank."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from veclip_core import storage
from veclip_core.leases import Lease
from veclip_core.training.checkpoint import (
    KEPT,
    STATE,
    TRAINING,
    WEIGHTS,
    Checkpoint,
    digest_of_file,
    list_checkpoints,
    plainly_alone,
    remove_all_but,
)
from veclip_core.training.learner import Learner
from veclip_core.training.world import World

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Copy:
    """What a checkpoint holds, apart from what training goes on changing."""

    checkpoint: Checkpoint
    tensors: "dict[str, torch.Tensor]"
    """This rank's shards."""
    weights: "dict[str, torch.Tensor]"
    """Whole; of the leader alone."""
    state: str


class CheckpointWriter:
    """Publishes a training's checkpoints; one is under way at a time.

    Args:
        lease: the leader's, without which no marker is written.
    """

    def __init__(self, folder: str, world: World, lease: Lease | None) -> None:
        self._folder, self._world, self._lease = folder, world, lease
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[Checkpoint] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is under way is finished, also where the training has failed."""
        self._pool.shutdown(wait=True)
        if self._under_way is not None and (unwritten := self._under_way.exception()) is not None:
            if error is None:
                raise unwritten
            logger.warning("a checkpoint was not written: %s", unwritten)

    def begin(self, step: int, learner: Learner, state: Mapping[str, Any]) -> None:
        """Copy, and let the rest happen beside the training. Called on all ranks.

        Raises:
            Exception: what became of the one before, where it could not be written.
        """
        self.finish()
        if self._lease is not None:
            self._lease.check()
        copied = _copied(Checkpoint(self._folder, step), learner, state, self._world.leads)
        self._under_way = self._pool.submit(self._write, copied)

    def finish(self) -> Checkpoint | None:
        """The last checkpoint, once it is published; None where none was begun."""
        if self._under_way is None:
            return None
        under_way, self._under_way = self._under_way, None
        return under_way.result()

    def _write(self, copied: _Copy) -> Checkpoint:
        import torch.distributed.checkpoint as dcp
        from safetensors.torch import save_file
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

        world, checkpoint = self._world, copied.checkpoint
        if world.leads:  # the others publish when the shards are planned, which is later
            storage.delete(checkpoint.marker)
            remove_all_but(self._folder, list_checkpoints(self._folder))
        with storage.scratch_folder(self._folder) as scratch:
            with storage.fatal_errors_named(self._folder):
                plainly_alone()
                dcp.save(
                    copied.tensors,
                    storage_writer=HuggingFaceStorageWriter(str(scratch / TRAINING), save_distributed=True),
                    process_group=world.writers,
                    no_dist=world.ranks == 1,
                )
                if world.leads:
                    save_file(copied.weights, scratch / WEIGHTS)
                    (scratch / STATE).write_text(copied.state)
            digests = {}
            for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
                name = path.relative_to(scratch).as_posix()
                digests[name] = digest_of_file(path)
                storage.publish_file(path, storage.join(checkpoint.uri, name))
        of_ranks = world.gathered(digests, world.writers)
        if world.leads:
            if self._lease is not None:
                self._lease.check()
            together = {name: digest for one in of_ranks for name, digest in one.items()}
            storage.write_json(checkpoint.marker, {"step": checkpoint.step, "sha256": together})
            remove_all_but(self._folder, list_checkpoints(self._folder)[-KEPT:])
        world.gathered(None, world.writers)  # finished on one rank is finished on all
        return checkpoint


def _copied(checkpoint: Checkpoint, learner: Learner, state: Mapping[str, Any], whole: bool) -> _Copy:
    import torch
    from torch.distributed.tensor import DTensor

    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in learner.tensors().items()
    }
    weights = {}
    for name, tensor in learner.weights().items():
        # One after the other, because the whole model need not fit beside its shards.
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if whole:
            weights[name] = full.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return _Copy(checkpoint, tensors, weights, json.dumps(state, allow_nan=False))
