"""The contrastive losses, over a batch that ranks share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Loss = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
"""loss(images_BD, texts_BD, logit_scale, logit_bias or None): of this rank's B rows against the rows of all ranks."""


def contrastive_loss(kind: Literal["clip", "siglip"], rank: int = 0, ranks: int = 1) -> Loss:
    """open_clip's. The mean over the ranks is the loss of the whole batch, and the mean of their gradients its gradient."""
    from open_clip.loss import ClipLoss, SigLipLoss

    loss: Any
    if kind == "siglip":
        loss = SigLipLoss(rank=rank, world_size=ranks)
    else:
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=ranks)
    return loss  # type: ignore[no-any-return]
