"""What accelerators can do at most, from their makers' public data sheets: the base of MFU and of projected hours."""

import platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    """A pattern of the names that `torch.cuda.get_device_name` gives; a blank stands for a blank, a dash or nothing."""
    tflops: float
    """Dense bf16 (fp16 where there is no bf16), added up in float32. Data sheets often print twice as many, for sparse matrices."""
    source: str


# From the particular to the general: the first that fits is taken.
DEVICES: tuple[Device, ...] = (
    Device("GB200", 2_500, "NVIDIA GB200 NVL72 data sheet: 360 PFLOPS sparse over 72"),
    Device("B200", 2_250, "NVIDIA HGX B200 data sheet: 36 PFLOPS sparse over 8"),
    Device("GH200", 989.5, "NVIDIA GH200 data sheet: 1,979 sparse"),
    Device("H200 NVL", 835.5, "NVIDIA H200 data sheet: 1,671 sparse"),
    Device("H200", 989.5, "NVIDIA H200 data sheet: 1,979 sparse"),
    Device("H100 NVL", 835.5, "NVIDIA H100 data sheet: 1,671 sparse"),
    Device("H100 PCIe", 756.5, "NVIDIA H100 data sheet: 1,513 sparse"),
    Device("H100", 989.5, "NVIDIA H100 data sheet, SXM: 1,979 sparse"),
    Device("A100", 312, "NVIDIA A100 data sheet"),
    Device("A40", 149.7, "NVIDIA A40 data sheet"),
    Device("A30", 165, "NVIDIA A30 data sheet"),
    Device("A10", 125, "NVIDIA A10 data sheet"),
    Device("L40S", 362, "NVIDIA L40S data sheet"),
    Device("L40", 181, "NVIDIA L40 data sheet"),
    Device("L4", 121, "NVIDIA L4 data sheet: 242 sparse"),
    Device("RTX 4090", 165.2, "NVIDIA Ada GPU architecture white paper"),
    Device("RTX 3090", 71, "NVIDIA Ampere GA102 GPU architecture white paper"),
    Device("V100 PCIE", 112, "NVIDIA V100 data sheet, fp16"),
    Device("V100", 125, "NVIDIA V100 data sheet, SXM2, fp16"),
    Device("T4", 65, "NVIDIA T4 data sheet, fp16"),
    Device("MI300X", 1_307.4, "AMD Instinct MI300X data sheet"),
)


LESS = re.compile(r"\b(MIG|Laptop|Max-Q|4090 D|vGPU)\b", re.IGNORECASE)
"""Names of slices and of slower kinds, which have their big sibling's name in theirs."""


def name_of(device: "torch.device") -> str:
    """A GPU's name, or the processor's."""
    if device.type != "cuda":
        return platform.processor() or platform.machine()
    import torch

    return str(torch.cuda.get_device_name(device))


def device_named(name: str) -> Device | None:
    """The device of that name, or None for a CPU and whatever is not in the table: no number is better than a guess."""
    for device in DEVICES:
        pattern = r"[\s-]*".join(map(re.escape, device.name.split()))
        if re.search(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", name, re.IGNORECASE):
            return None if LESS.search(name) else device
    return None
