"""What a model costs, held against other counts of the same."""

import pytest

from veclip_core.training.cost import ModelSize, forward_flops, memory_of, size_of, training_flops
from veclip_core.training.model import architecture, build_model
from veclip_core.training.recipe import Recipe

CLIP_VOCABULARY = 49_408


def described(model: str, image_size: int = 224, context_length: int = 77) -> dict[str, object]:
    recipe = Recipe(model=model, image_size=image_size, cache_size=image_size, context_length=context_length)
    return architecture(recipe, CLIP_VOCABULARY)


@pytest.mark.parametrize(
    ("model", "millions", "gflops"),
    [("ViT-B-16", 149.62, 41.09), ("ViT-L-14", 427.62, 175.33), ("ViT-H-14", 986.11, 381.68)],
)
def test_parameters_and_flops_are_those_that_open_clip_publishes(model: str, millions: float, gflops: float) -> None:
    """docs/model_profile.csv of mlfoundations/open_clip."""
    description = described(model)
    assert size_of(description, half_precision=True).parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert forward_flops(description) / 1e9 == pytest.approx(gflops, rel=0.002)


def test_a_backward_pass_is_two_forward_passes() -> None:
    """By the same counter on a real backward pass; the first layer needs no gradient of its input."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    description = described("ViT-B-32")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(description).train()
        images_BD, texts_BD, _ = model(torch.empty(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int64))
        (images_BD.sum() + texts_BD.sum()).backward()
    forward = forward_flops(description)
    assert counter.get_total_flops() == pytest.approx(training_flops(forward), rel=0.02)
    assert training_flops(forward, computed_twice=1) == 4 * forward


def test_activations_are_those_of_the_known_formula() -> None:
    """Of each token and layer 32 bytes a number of width: arXiv 2205.05198 without dropout and kept attention weights."""
    size = size_of(described("ViT-B-16"), half_precision=True)
    widths = 197 * 768 * 12 + 77 * 512 * 12
    assert size.activation_bytes == pytest.approx(32 * widths, rel=0.08)
    assert size.checkpointed_bytes == pytest.approx(2 * widths + 32 * 197 * 768, rel=0.3)
    assert size_of(described("ViT-B-16"), half_precision=False).activation_bytes > 1.8 * size.activation_bytes
    assert size.largest_block == 12 * 768**2 + 13 * 768
    assert size.outside_blocks == size.parameters - 12 * (12 * 768**2 + 13 * 768) - 12 * (12 * 512**2 + 13 * 512)


def test_memory_adds_up_by_the_formula() -> None:
    size = ModelSize(
        parameters=1_000, largest_block=100, outside_blocks=300, activation_bytes=50, checkpointed_bytes=10
    )
    common = {"batch_size": 64, "embed_dim": 4, "ranks": 4, "ema": True, "half_precision": True}
    ddp = memory_of(size, **common, micro_batch=None, parallel="ddp", checkpoint_activations=False)  # type: ignore[arg-type]
    assert (ddp.weights, ddp.gradients, ddp.optimizer, ddp.ema) == (4_000, 4_000, 8_000, 4_000)
    assert (ddp.copies, ddp.activations, ddp.loss) == (6_000, 16 * 50, 24 * 16 * 64 + 16 * 64 * 4)
    assert ddp.total == 20_000 + 6_000 + 800 + 28_672
    fsdp = memory_of(size, **common, micro_batch=2, parallel="fsdp", checkpoint_activations=True)  # type: ignore[arg-type]
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer, fsdp.ema) == (1_000, 1_000, 2_000, 1_000)
    assert (fsdp.copies, fsdp.activations) == (2_000 + 1_200 + 800, 2 * 10)
