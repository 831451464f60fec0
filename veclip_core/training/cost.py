"""What a model costs before it is trained: parameters, FLOPs, memory. Counted on models without memory of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from veclip_core.training.model import build_model

if TYPE_CHECKING:
    import torch
    from open_clip.model import CLIP

BACKWARD = 2
"""FLOPs of a backward pass, in forward passes: one product for the inputs' gradients, one for the weights'."""
STATES = {"weights": 4, "gradients": 4, "optimizer": 8}
"""Bytes of each parameter: all in float32, AdamW keeps two moments."""
LOSS_BYTES = 2 * 3 * 4
"""Of each pair in a rank's rows of the logits: both directions; logits, log-probabilities and gradient; float32."""


def forward_flops(description: Mapping[str, Any]) -> int:
    """Of one picture and one text as long as the context, by torch's own counter: a multiply-add is two. Loss not included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        _encode(build_model(dict(description)), description, 1)
    return int(counter.get_total_flops())


def training_flops(forward: int, *, computed_twice: int = 0) -> int:
    """Of one sample's forward and backward pass.

    Args:
        computed_twice: further forward passes: one for a gradient cache, one for activation checkpointing.
    """
    return (1 + BACKWARD + computed_twice) * forward


@dataclass(frozen=True)
class ModelSize:
    """What decides the memory of a training."""

    parameters: int
    largest_block: int
    """Parameters of the largest block: of blocks FSDP gathers one at a time, and the next."""
    outside_blocks: int
    """Parameters that are in no block, such as the tokens' embedding: FSDP gathers them for a whole step."""
    activation_bytes: int
    """Kept of one sample for its backward pass."""
    checkpointed_bytes: int
    """The same with activation checkpointing: the inputs of the blocks, what lies outside of them, and one block's own."""


def size_of(description: Mapping[str, Any], half_precision: bool) -> ModelSize:
    """Counted on tensors without memory: what autograd keeps, with the attention that does not keep its weights.

    Of a batch of two the bytes of a batch of one are taken off, so that weights that were cast to bf16 do not count.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = build_model(dict(description)).train()
        kept = []
        for count in (1, 2):
            with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
                kept.append(_kept(model, description, count))
        one, two = kept
        parameters = _count(model)
        blocks = [_count(block) for block in _blocks(model)]
        return ModelSize(
            parameters=parameters,
            largest_block=max(blocks, default=0),
            outside_blocks=parameters - sum(blocks),
            activation_bytes=two.all - one.all,
            checkpointed_bytes=two.checkpointed - one.checkpointed,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, at their most. What the allocator and CUDA themselves take comes on top: about a tenth."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    copies: int
    """Of the weights: in half precision while they compute, the buckets in which DDP sends gradients, what FSDP has gathered."""
    activations: int
    loss: int
    """Logits and all ranks' embeddings."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.copies + self.activations + self.loss


def memory_of(
    size: ModelSize,
    *,
    batch_size: int,
    embed_dim: int,
    ranks: int,
    micro_batch: int | None,
    parallel: Literal["ddp", "fsdp"],
    checkpoint_activations: bool,
    half_precision: bool,
    ema: bool,
) -> Memory:
    """An estimate for each of `ranks` devices.

    With P parameters, B samples a contrastive batch, b of them at a time on a device (the micro-batch of a gradient cache, else
    B / ranks), A bytes of activations a sample and D numbers an embedding:

        weights 4 P + gradients 4 P + AdamW 8 P (+ EMA 4 P), over the ranks under FSDP
        copies  2 P in half precision; DDP over several ranks: 4 P; FSDP: 4 bytes a parameter of two blocks and of what is in none
        A b     with A as counted by `size_of`, with activation checkpointing or without
        loss    24 bytes x B / ranks x B, and the gathered embeddings with their gradients: 16 B D
    """
    share = -(-batch_size // ranks)
    sharded = ranks if parallel == "fsdp" else 1
    at_once = min(micro_batch or share, share)
    copies = 2 * size.parameters if half_precision else 0
    if parallel == "fsdp":
        copies += 4 * (size.outside_blocks + 2 * size.largest_block)
    elif ranks > 1:
        copies += 4 * size.parameters
    states = {name: each * size.parameters // sharded for name, each in STATES.items()}
    return Memory(
        **states,
        ema=4 * size.parameters // sharded if ema else 0,
        copies=copies,
        activations=at_once * (size.checkpointed_bytes if checkpoint_activations else size.activation_bytes),
        loss=LOSS_BYTES * share * batch_size + 16 * batch_size * embed_dim,
    )


@dataclass(frozen=True)
class _Kept:
    all: int
    checkpointed: int


def _kept(model: "CLIP", description: Mapping[str, Any], count: int) -> _Kept:
    """Bytes that autograd keeps of a forward pass of `count` samples."""
    import torch

    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, tuple[torch.UntypedStorage, int | None]] = {}
    inside: list[int] = []
    inputs = 0

    def enter(number: int, _block: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal inputs
        inside.append(number)
        inputs += arguments[0].nbytes

    def leave(*_: Any) -> None:
        inside.pop()

    def pack(tensor: "torch.Tensor") -> "torch.Tensor":
        if (key := _storage(tensor)) not in own:
            # The storage is held, so that no later one gets its key.
            found.setdefault(key, (tensor.untyped_storage(), inside[-1] if inside else None))
        return tensor

    hooks = []
    for number, block in enumerate(_blocks(model)):
        hooks += [block.register_forward_pre_hook(partial(enter, number)), block.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(pack, _unchanged):
        outputs = _encode(model, description, count)
    for hook in hooks:
        hook.remove()
    del outputs
    by_block: dict[int | None, int] = {}
    for storage, block_number in found.values():
        by_block[block_number] = by_block.get(block_number, 0) + storage.nbytes()
    outside = by_block.pop(None, 0)
    return _Kept(outside + sum(by_block.values()), outside + inputs + max(by_block.values(), default=0))


def _unchanged(tensor: "torch.Tensor") -> "torch.Tensor":
    return tensor


def _count(module: "torch.nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _storage(tensor: "torch.Tensor") -> int:
    return int(tensor.untyped_storage()._cdata)


def _blocks(model: "CLIP") -> list["torch.nn.Module"]:
    """The transformer blocks of both towers; a ResNet has none."""
    return [
        block for name, blocks in model.named_modules() if name.endswith("resblocks") for block in blocks.children()
    ]


def _encode(model: "CLIP", description: Mapping[str, Any], count: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    side, length = description["vision_cfg"]["image_size"], description["text_cfg"]["context_length"]
    images_BCHW = torch.empty(count, 3, side, side)
    tokens_BL = torch.zeros(count, length, dtype=torch.int64)
    return model.encode_image(images_BCHW, normalize=True), model.encode_text(tokens_BL, normalize=True)
