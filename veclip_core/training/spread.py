"""A model over the ranks: whole on each (DDP) or in shards (FSDP2), and what depends on which."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from veclip_core.training.recipe import Recipe
from veclip_core.training.report import Runtime
from veclip_core.training.world import World

if TYPE_CHECKING:
    import torch


def _blocks(model: Any) -> Iterator[Any]:
    """The transformers' blocks, the same again and again."""
    from open_clip.transformer import Transformer

    for module in model.modules():
        if isinstance(module, Transformer):
            yield from module.resblocks


def compiled_alone(model: Any) -> list[Any]:
    """Blocks, because one compilation serves them all; a ResNet whole."""
    from open_clip.modified_resnet import ModifiedResNet

    return [*_blocks(model), *([model.visual] if isinstance(model.visual, ModifiedResNet) else [])]


def spread(towers: Any, runtime: Runtime, world: World) -> Any:
    if world.ranks == 1:
        return towers
    if runtime.parallel == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(towers, device_ids=devices, forward_sync_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.ranks,))
    for block in _blocks(towers):
        fully_shard(block, mesh=mesh)
    scalars = {parameter for parameter in towers.parameters() if parameter.ndim == 0}
    return fully_shard(towers, mesh=mesh, ignored_params=scalars)


def average_scalar_gradients(model: "torch.nn.Module", world: World) -> None:
    """Over the ranks, of the scalars that FSDP can't shard and so leaves alone."""
    import torch.distributed as dist

    if not _is_sharded(model):
        return
    for parameter in model.parameters():
        if parameter.ndim == 0 and parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.ranks


def clip(model: "torch.nn.Module", largest: float) -> "torch.Tensor":
    """Clip the gradient of all ranks together; its norm before."""
    import torch
    from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

    parameters = list(model.parameters())
    if not _is_sharded(model):
        return clip_grad_norm_(parameters, largest)
    # Of sharded tensors and whole ones in one list torch makes no norm.
    kinds = [[one for one in parameters if (one.ndim == 0) is scalar] for scalar in (False, True)]
    sharded, whole = ([one.grad for one in kind if one.grad is not None] for kind in kinds)
    norm = torch.hypot(get_total_norm(sharded).full_tensor(), get_total_norm(whole))  # type: ignore[attr-defined]
    for kind in kinds:
        clip_grads_with_norm_(kind, largest, norm)
    return norm


def _is_sharded(model: "torch.nn.Module") -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def optimizer_of(model: "torch.nn.Module", recipe: Recipe) -> "torch.optim.Optimizer":
    """AdamW, its state laid out; vectors and scalars (biases, norms, the temperature) do not decay."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [one for one in parameters if one.ndim == 1], "weight_decay": 0.0},
        # Of their own: FSDP leaves them whole.
        {"params": [one for one in parameters if one.ndim == 0], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.epsilon, fused=True)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer
