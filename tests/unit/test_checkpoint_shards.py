"""The shards of a checkpoint in a bucket, as several ranks of a machine fetch them. The ranks are threads here."""

import hashlib
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from veclip_core import storage
from veclip_core.training.checkpoint import Checkpoint, DamagedCheckpoint
from veclip_core.training.world import AnotherRankFailed, World

NAMES = ("training/a.safetensors", "training/b.safetensors")


@dataclass
class Together:
    """What two threads tell each other."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=10))
    values: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OfThreads(World):
    """Each rank its thread."""

    together: Together = field(default_factory=Together)

    def gathered(self, value: Any, group: object = None) -> list[Any]:
        self.together.barrier.wait()
        self.together.values[self.rank] = value
        self.together.barrier.wait()
        return [self.together.values[rank] for rank in range(self.ranks)]


@pytest.fixture
def shards() -> tuple[Checkpoint, dict[str, str]]:
    checkpoint = Checkpoint(f"memory://{uuid.uuid4().hex}", 4)
    for name in NAMES:
        storage.write_bytes(storage.join(checkpoint.uri, name), name.encode() * 1000)
    return checkpoint, {name: hashlib.sha256(name.encode() * 1000).hexdigest() for name in NAMES}


def read_by_two(checkpoint: Checkpoint, shards: dict[str, str]) -> list[tuple[Path, list[bytes]] | Exception]:
    together = Together()

    def read(rank: int) -> tuple[Path, list[bytes]] | Exception:
        world = OfThreads(torch.device("cpu"), rank, 2, rank == 0, together=together)
        try:
            with checkpoint._local(shards, world) as folder:
                return folder, [(folder.parent / name).read_bytes() for name in shards]
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(read, range(2)))


def test_one_rank_of_a_machine_fetches_for_all(
    shards: tuple[Checkpoint, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, open_read = [], storage.open_read

    def noted(uri: str) -> IO[bytes]:
        fetched.append(uri)
        return open_read(uri)

    monkeypatch.setattr(storage, "open_read", noted)
    first, second = read_by_two(*shards)
    assert first == second
    assert isinstance(first, tuple)
    assert first[1] == [name.encode() * 1000 for name in NAMES]
    assert len(fetched) == len(NAMES), "once each"
    assert not first[0].parent.exists(), "gigabytes of a disk"


def test_ranks_that_see_none_of_each_others_folders_fetch_their_own(
    shards: tuple[Checkpoint, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, is_dir = threading.local(), Path.is_dir

    @contextmanager
    def of_its_own(root: str) -> Iterator[Path]:
        here.folder = tmp_path / uuid.uuid4().hex
        here.folder.mkdir()
        yield here.folder

    monkeypatch.setattr(storage, "scratch_folder", of_its_own)
    monkeypatch.setattr(Path, "is_dir", lambda path: is_dir(path) and path == here.folder)
    first, second = read_by_two(*shards)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert first[0] != second[0]
    assert first[1] == second[1]


@pytest.mark.parametrize("where", ["bucket", "disk"])
def test_a_damaged_shard_is_said_on_every_rank(
    shards: tuple[Checkpoint, dict[str, str]], tmp_path: Path, where: str
) -> None:
    """None waits for one that has failed."""
    checkpoint, digests = shards
    if where == "disk":
        checkpoint = Checkpoint(str(tmp_path), 4)
        storage.write_bytes(storage.join(checkpoint.uri, NAMES[1]), NAMES[1].encode() * 1000)
    storage.write_bytes(storage.join(checkpoint.uri, NAMES[0]), b"another")
    damaged, other = read_by_two(checkpoint, digests)
    assert isinstance(damaged, DamagedCheckpoint)
    assert isinstance(other, AnotherRankFailed)
    assert str(damaged) in str(other)
