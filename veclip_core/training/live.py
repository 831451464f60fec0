"""What a training tells of its speed while it runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from veclip_core.training.devices import Device, device_named

if TYPE_CHECKING:
    import torch


class LiveMetrics:
    """Speed, memory and waiting of one interval between two log entries.

    Args:
        model_flops_per_sample: of one sample's forward and backward pass, without what is computed twice to save memory.
        device: this rank's.
        ranks: processes with a device each.
    """

    def __init__(self, model_flops_per_sample: float, device: "torch.device", ranks: int = 1) -> None:
        self._flops, self._device, self._ranks = model_flops_per_sample, device, ranks
        self._kind = _kind_of(device)

    @classmethod
    def of(cls, description: Mapping[str, Any], device: "torch.device", ranks: int = 1) -> "LiveMetrics":
        """Of a model by its description (`training/model.py`); its FLOPs are counted only where they are of use."""
        from veclip_core.training.cost import forward_flops, training_flops

        known = _kind_of(device) is not None
        return cls(training_flops(forward_flops(description)) if known else 0.0, device, ranks)

    def interval(self, samples: int, seconds: float, wait_s: float) -> dict[str, float]:
        """Metrics of `seconds` in which all ranks together took `samples`, and this one waited `wait_s` for its batches.

        `samples_per_s`, `data_wait` (share of the time), `memory_gb` (of a GPU the most that was allocated since the start, on a
        CPU what the process holds now), and `mfu`: the share of the devices' peak (`devices.py`) that the model's FLOPs make up
        (as in PaLM, arXiv 2204.02311, appendix B). On a CPU or an unknown device there is no `mfu`. FLOPs are those of texts as
        long as the context, while `encode_texts` leaves most of the padding out: with texts of 25 tokens `mfu` is a ninth too high
        for ViT-B-16, and half of that for ViT-L-14.
        """
        seconds = max(seconds, 1e-9)
        rate = samples / seconds
        metrics = {"samples_per_s": rate, "data_wait": min(1.0, wait_s / seconds), "memory_gb": self._memory_gb()}
        if self._kind is not None:
            metrics["mfu"] = rate * self._flops / (self._ranks * self._kind.tflops * 1e12)
        return metrics

    def _memory_gb(self) -> float:
        if self._device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self._device) / 1e9
        import psutil

        return float(psutil.Process().memory_info().rss) / 1e9


def _kind_of(device: "torch.device") -> Device | None:
    if device.type != "cuda":
        return None
    import torch

    return device_named(torch.cuda.get_device_name(device))
