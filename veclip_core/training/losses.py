"""The contrastive losses, open_clip's, over the batch of one process or of all ranks together."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def contrastive_loss(kind: Literal["clip", "siglip"], rank: int, ranks: int) -> "torch.nn.Module":
    """The loss module, called as `loss(images_BD, texts_BD, logit_scale, logit_bias)`: rows of norm 1, no logarithm of the scale,
    the bias None for `clip`. Returns a scalar: this rank's share, whose mean over the ranks is the whole batch's loss.

    Over several ranks each computes its own rows against everybody's columns, and gradients flow back to where they came from.
    """
    from open_clip.loss import ClipLoss, SigLipLoss

    if kind == "siglip":
        return SigLipLoss(rank=rank, world_size=ranks)
    several = ranks > 1
    return ClipLoss(local_loss=several, gather_with_grad=several, rank=rank, world_size=ranks)
