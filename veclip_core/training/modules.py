"""The torch modules of the loop. Imported where a training begins, because torch's classes are needed to derive from."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed.nn.functional import all_gather

from veclip_core.training.model import encode_texts
from veclip_core.training.process import attention_for


class Towers(torch.nn.Module):
    """Both towers behind one `forward`, which is where DDP and FSDP take hold of a step."""

    def __init__(self, model: Any, device: torch.device, choose_attention: bool) -> None:
        super().__init__()
        self.model = model
        self._device, self._choose_attention = device, choose_attention

    def forward(
        self, images_BCHW: torch.Tensor, tokens_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """images_BD, texts_BD (of norm 1), the factor of the logits, and their bias where the model has one."""
        images_BD = self.model.encode_image(images_BCHW, normalize=True)
        attention: AbstractContextManager[None] = (
            attention_for(self._device) if self._choose_attention else nullcontext()
        )
        with attention:
            texts_BD = encode_texts(self.model, tokens_BL, self._device)
        return images_BD, texts_BD, self.model.logit_scale.exp(), getattr(self.model, "logit_bias", None)


class SharedBatchNorm(torch.nn.BatchNorm2d):
    """Batch normalisation over the rows of all ranks, each of which holds as many: what one process would compute.

    As torch.nn.SyncBatchNorm, which knows GPUs only.
    """

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        var_C, mean_C = torch.var_mean(x_BCHW.float(), dim=(0, 2, 3), correction=0)
        of_ranks_R2C = torch.stack(list(all_gather(torch.stack([mean_C, var_C]))))
        means_RC, vars_RC = of_ranks_R2C.unbind(1)
        mean_C = means_RC.mean(0)
        var_C = (vars_RC + (means_RC - mean_C) ** 2).mean(0)
        with torch.no_grad():
            count = x_BCHW.numel() // x_BCHW.shape[1] * len(means_RC)
            buffers: dict[str, Any] = dict(self.named_buffers())
            buffers["num_batches_tracked"].add_(1)
            buffers["running_mean"].lerp_(mean_C, self.momentum)
            buffers["running_var"].lerp_(var_C * count / max(1, count - 1), self.momentum)
        scale_C = self.weight * torch.rsqrt(var_C + self.eps)
        shift_C = self.bias - mean_C * scale_C
        normalised_BCHW = x_BCHW.float() * scale_C.view(1, -1, 1, 1) + shift_C.view(1, -1, 1, 1)
        return normalised_BCHW.to(x_BCHW.dtype)


def share_batch_norms(module: torch.nn.Module) -> None:
    """Turn the batch normalisations below into such that are computed over all ranks; the weights stay what they are."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            shared = SharedBatchNorm(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared.to(child.weight.device, child.weight.dtype))
        else:
            share_batch_norms(child)
