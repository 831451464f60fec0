"""What a training tells of its speed."""

import psutil
import pytest
import torch

from veclip_core.training.devices import device_named
from veclip_core.training.live import LiveMetrics
from veclip_core.training.model import architecture
from veclip_core.training.recipe import RECIPES
from veclip_dagster.model_assets import curves_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2_250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("A100", 312),
    ],
)
def test_peaks_are_found_by_the_names_that_drivers_give(name: str, tflops: float) -> None:
    found = device_named(name)
    assert found is not None
    assert found.tflops == tflops


@pytest.mark.parametrize(
    "name",
    [
        "x86_64",
        "",
        "NVIDIA H20",
        "NVIDIA A10G",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    assert device_named(name) is None


def test_on_a_cpu_there_is_no_mfu() -> None:
    live = LiveMetrics.of(architecture(RECIPES["12m"], 49_408), torch.device("cpu"))
    metrics = live.interval(samples=512, seconds=4.0, wait_s=1.0)
    assert set(metrics) == {"samples_per_s", "data_wait", "memory_gb"}
    assert (metrics["samples_per_s"], metrics["data_wait"]) == (128.0, 0.25)
    assert metrics["memory_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.1)


def test_on_a_known_gpu_mfu_is_the_model_flops_over_all_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12_500_000_000)
    live = LiveMetrics.of(architecture(RECIPES["12m"], 49_408), torch.device("cuda", 0), ranks=2)
    metrics = live.interval(samples=20_000, seconds=10.0, wait_s=0.0)
    assert metrics["mfu"] == pytest.approx(2_000 * 3 * 41.09e9 / (2 * 312e12), rel=0.002)
    assert metrics["memory_gb"] == 12.5


def test_curves_are_of_the_metrics_that_there_are() -> None:
    history = [
        {"step": step, "loss": 5.0 / step, "lr": 1e-4, "grad_norm": 1.0, "logit_scale": 14.3, "samples_per_s": 10.0}
        for step in (10, 20)
    ]
    history[1]["mfu"] = 0.4
    found = curves_of(history)
    assert found["contrastive loss"] == [(10.0, 0.5), (20.0, 0.25)]
    assert found["share of the devices' peak (MFU)"] == [(20.0, 0.4)]
    assert len(found) == 6
    assert curves_of([]) == {}
