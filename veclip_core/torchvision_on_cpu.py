"""Lets PyPI's torchvision be imported beside a CPU build of torch.

PyPI's Linux torchvision is a CUDA build. Beside a CPU torch its operators library does not load, and the import then fails
at `torchvision::nms does not exist`, taking open_clip and transformers with it. Nothing here calls those operators: declaring
their schemas is enough. Registered under the entry-point group `torch.backends`, which torch loads at the end of its import,
so that every process (spawned workers, torchrun, vLLM) has it. Does nothing where the two builds match.
"""

from importlib import metadata, util
from pathlib import Path
from typing import Any

_kept_alive: list[Any] = []


def declare_missing_operators() -> None:
    """Declare torchvision's operators when torch is a CPU build and torchvision is not."""
    import torch

    if torch.version.cuda is not None or not _torchvision_is_cuda_build():
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)


def _torchvision_is_cuda_build() -> bool:
    spec = util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    version_file = Path(spec.origin).with_name("version.py")
    if version_file.exists():
        return "+cu" in version_file.read_text()
    return "+cu" in metadata.version("torchvision")
