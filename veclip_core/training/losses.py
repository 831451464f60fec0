"""The contrastive losses, open_clip's, over the batch of one process or of all ranks together."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Loss = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
"""loss(images_BD, texts_BD, logit_scale, logit_bias or None): of this rank's B rows against the rows of all ranks."""


def contrastive_loss(kind: Literal["clip", "siglip"], rank: int = 0, ranks: int = 1) -> Loss:
    """A function of rows of norm 1, of the scale (not its logarithm) and of the bias, None for `clip`. It gives this rank's share,
    whose mean over the ranks is the whole batch's loss.

    Over several ranks each computes its own rows against everybody's columns, and gradients flow back to where they came from.
    """
    from open_clip.loss import ClipLoss, SigLipLoss

    loss: Any
    if kind == "siglip":
        loss = SigLipLoss(rank=rank, world_size=ranks)
    else:
        several = ranks > 1
        loss = ClipLoss(local_loss=several, gather_with_grad=several, rank=rank, world_size=ranks)
    return loss  # type: ignore[no-any-return]
