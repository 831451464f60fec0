"""The processes (ranks) of one training: which of them this is, and what they tell each other."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")

SILENCE = timedelta(hours=1)
"""How long ranks wait for one of them that is alive: the first to come decodes pictures for all. A dead one is noticed at once."""


class AnotherRankFailed(RuntimeError):
    """Another rank raised the error that says what to do."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of a training; alone unless `joined`."""

    device: "torch.device"
    rank: int = 0
    ranks: int = 1
    first_of_machine: bool = True
    launched: bool = False
    """By a launcher, which is told how it ended and decides about signals."""
    talk: "ProcessGroup | None" = None
    """For numbers and objects of the training itself, on the CPU."""
    writers: "ProcessGroup | None" = None
    """The same ranks once more, for the threads that write checkpoints: two threads must not share a group."""

    @classmethod
    def alone(cls, device: str = "auto") -> "World":
        return cls(device_named(device))

    @classmethod
    @contextmanager
    def joined(cls, device: str = "auto") -> Iterator["World"]:
        """The ranks that torchrun's or Ray Train's environment names; gloo between CPUs, NCCL between GPUs."""
        import torch
        import torch.distributed as dist

        # What open_clip's loss gathers with; its successor has no public name.
        warnings.filterwarnings("ignore", message="torch.distributed.nn.functional.all_gather is deprecated")
        chosen = device_named(device)
        own = dist.get_node_local_rank(fallback_rank=0)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", own)
            torch.cuda.set_device(chosen)
        joins = not dist.is_initialized()  # Ray Train has joined them already, and takes leave itself
        if joins:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=SILENCE)
        talk, writers = (dist.new_group(backend="gloo", timeout=SILENCE) for _ in range(2))
        yield cls(chosen, dist.get_rank(), dist.get_world_size(), own == 0, True, talk, writers)
        if joins:  # not after an error: the others are gone, and taking leave of them would wait
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """The one rank that holds the lease, logs, and writes states and markers."""
        return self.rank == 0

    def told(self, value: Value) -> Value:
        """The leader's value, on every rank."""
        if self.ranks == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.talk)
        return values[0]

    def gathered(self, value: Value, group: "ProcessGroup | None" = None) -> list[Value]:
        """Every rank's value, on every rank, by rank."""
        if self.ranks == 1:
            return [value]
        import torch.distributed as dist

        values: list[Value] = [value] * self.ranks
        dist.all_gather_object(values, value, group=group or self.talk)
        return values

    def all_do(self, work: Callable[[], None]) -> None:
        """Do on every rank what may fail on one: all are done afterwards, or all raise.

        Raises:
            AnotherRankFailed: where it was another's work that failed.
        """
        failed: Exception | None = None
        try:
            work()
        except Exception as error:
            failed = error
        of_ranks = self.gathered(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            raise failed
        for rank, said in enumerate(of_ranks):
            if said is not None:
                raise AnotherRankFailed(f"rank {rank} of {self.ranks} failed: {said}")

    def summed(self, values: Sequence[float]) -> list[float]:
        """Over the ranks, each in its place."""
        if self.ranks == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self.talk)
        added: list[float] = sums.tolist()
        return added


def device_named(name: str) -> "torch.device":
    """`auto` is the GPU where there is one."""
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
