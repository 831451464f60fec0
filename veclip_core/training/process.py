"""The process around a training: repeatable arithmetic, and signals that become a checkpoint."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class TrainingInterrupted(RuntimeError):
    """A signal asked to stop, a checkpoint was saved, and the signal's own handler let the process live."""


@contextmanager
def repeatable(threads: int | None) -> Iterator[None]:
    """Deterministic algorithms and a fixed number of threads inside, what was before outside."""
    import torch
    import torch.utils.deterministic

    deterministic: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        deterministic.fill_uninitialized_memory = before[3]


def attention_for(device: "torch.device") -> AbstractContextManager[None]:
    """On a CPU the plain attention, for texts of 24 tokens: with the fused one, which is right for pictures, a step takes 15-20 %
    longer."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class StopSignal:
    """Notes SIGTERM and SIGINT while a training runs; the handlers from before come back at the end."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        logger.warning("signal %d: a checkpoint is saved after this step, then the training stops", number)
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
