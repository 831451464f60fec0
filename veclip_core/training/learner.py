"""What a training changes: the model, spread over the ranks as asked, with its optimizer; and one step's gradient.

The loss is over a whole contrastive batch, whatever the number of ranks and micro-batches it is computed in.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.mendable import Mendable
from veclip_core.training.data import Batch
from veclip_core.training.ema import Ema
from veclip_core.training.losses import Loss, contrastive_loss
from veclip_core.training.model import build_model, normalised
from veclip_core.training.recipe import Recipe
from veclip_core.training.report import Runtime
from veclip_core.training.spread import average_scalar_gradients, clip, compiled_alone, optimizer_of, spread
from veclip_core.training.world import World

if TYPE_CHECKING:
    import torch

MAX_LOGIT_SCALE = math.log(100)
LEAST_LOSS_SCALE = 1.0
"""fp16: a gradient that overflows even when the loss is hardly scaled is no matter of precision."""
_RANDOM = 6
"""A random stream of its own: those of the batches are in order.py and data.py."""


class CannotTrainSo(Mendable):
    """Settings that exclude each other, or that this recipe can't be trained with."""


@dataclass(frozen=True)
class Learner:
    """A model in training."""

    recipe: Recipe
    world: World
    precision: str
    micro_batch: int
    """Pairs that go through the towers at once on this rank."""
    model: Any
    towers: Any
    """`modules.Towers` over the model, in DDP's or FSDP's hands where there are several ranks."""
    optimizer: "torch.optim.Optimizer"
    loss: Loss
    scaler: "torch.amp.GradScaler | None"
    ema: Ema | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        runtime: Runtime,
        world: World,
        description: dict[str, Any],
        precision: str,
        batch_size: int,
    ) -> "Learner":
        """With the recipe's initial weights.

        Raises:
            CannotTrainSo: with what to change.
        """
        import torch

        from veclip_core.training.modules import Towers, share_batch_norms

        share = _share(recipe, world, batch_size)
        # Channels last: a CPU convolves a batch of the sample's pictures in two thirds of the time. FSDP takes no such parameters.
        sharded = runtime.parallel == "fsdp" and world.ranks > 1
        layout = torch.contiguous_format if sharded else torch.channels_last
        model = build_model(description, recipe.seed).to(world.device, memory_format=layout)
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
            if runtime.micro_batch is not None and runtime.micro_batch < share:
                raise CannotTrainSo(
                    f"{recipe.model} normalises over its batch, which micro-batches would change: unset"
                    " VECLIP_TRAIN_MICRO_BATCH, or choose a ViT"
                )
            if world.ranks > 1:
                share_batch_norms(model)
        if sharded and precision == "fp16":
            raise CannotTrainSo("fp16 is not scaled over shards: choose precision bf16, or VECLIP_TRAIN_PARALLEL=ddp")
        if runtime.checkpoint_activations:
            model.set_grad_checkpointing(True)
        if runtime.compile:
            for part in compiled_alone(model):
                part.compile()
        # What is computed again must choose its attention as the first time, so then it is left to torch.
        towers = spread(Towers(model, world.device, not runtime.checkpoint_activations), runtime, world)
        return cls(
            recipe,
            world,
            precision,
            runtime.micro_batch or share,
            model,
            towers,
            optimizer_of(model, recipe),
            contrastive_loss(recipe.loss, world.rank, world.ranks),
            torch.amp.GradScaler(world.device.type) if precision == "fp16" else None,
            Ema.of(model, recipe.ema_decay) if recipe.ema_decay is not None else None,
        )

    def gradient(self, batch: Batch, rate: float) -> dict[str, float]:
        """Compute and clip a step's gradient: `loss` (of this rank's share), `lr`, `grad_norm`, `logit_scale`.

        Where fp16 overflows, there is no `grad_norm`, and `update` will change nothing but the scale of the loss.
        """
        import torch

        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        count = self.recipe.accumulation_steps
        losses = []
        for number in range(count):
            # Every count-th row, so that the contrastive batches hold the same rows however many ranks share them.
            images_BCHW, tokens_BL = batch.images_BCHW[number::count], batch.tokens_BL[number::count]
            place, last = (batch.step, number), number == count - 1
            if self.micro_batch < len(tokens_BL):
                losses.append(self._cached(images_BCHW, tokens_BL, place, last))
            else:
                losses.append(self._whole(images_BCHW, tokens_BL, place, last))
        average_scalar_gradients(self.model, self.world)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = clip(self.model, self.recipe.clip_norm or math.inf)
        measured = {
            "loss": torch.stack(losses).mean().item(),
            "lr": rate,
            "grad_norm": norm.item(),
            "logit_scale": self.model.logit_scale.exp().item(),
        }
        if self.scaler is not None:
            measured["loss_scale"] = self.scaler.get_scale()
            if not math.isfinite(measured["grad_norm"]) and measured["loss_scale"] > LEAST_LOSS_SCALE:
                del measured["grad_norm"]
        return measured

    def update(self) -> None:
        """Step along the gradient."""
        import torch

        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        if self.ema is not None:
            self.ema.update(self.model)

    def tensors(self) -> "dict[str, torch.Tensor]":
        """All that changes, by name and not copied: a checkpoint read into these goes on where it was saved."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                found[f"optimizer.{name}.{key}"] = tensor
        if self.ema is not None:
            found |= {f"ema.{name}": tensor for name, tensor in self.ema.averages.items()}
        return found

    def weights(self) -> "dict[str, torch.Tensor]":
        """Of the model to evaluate: the average where one is kept."""
        averages = self.ema.averages if self.ema is not None else {}
        return {**self.model.state_dict(), **averages}

    def loss_scaling(self) -> dict[str, Any] | None:
        """The state of fp16's scale."""
        return self.scaler.state_dict() if self.scaler is not None else None

    def set_loss_scaling(self, state: dict[str, Any] | None) -> None:
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)

    def _whole(
        self, images_BCHW: "torch.Tensor", tokens_BL: "torch.Tensor", place: tuple[int, ...], last: bool
    ) -> "torch.Tensor":
        with self._exchanged(last):
            images_BD, texts_BD, scale, bias = self._encoded(images_BCHW, tokens_BL, place)
            loss = self.loss(images_BD.float(), texts_BD.float(), scale, bias)
            self._scaled(loss).backward()
        return loss.detach()

    def _cached(
        self, images_BCHW: "torch.Tensor", tokens_BL: "torch.Tensor", place: tuple[int, ...], last: bool
    ) -> "torch.Tensor":
        """The same gradient with the activations of one micro-batch in memory (GradCache, Gao et al. 2021, arXiv 2101.06983).

        All embeddings are computed without a graph, the loss gives their gradients, and each micro-batch is then computed again.
        """
        import torch

        micro_batches = list(zip(images_BCHW.split(self.micro_batch), tokens_BL.split(self.micro_batch), strict=True))
        with torch.no_grad():
            encoded = [self._encoded(*micro, (*place, number)) for number, micro in enumerate(micro_batches)]
        images_BD, texts_BD = (
            torch.cat(parts).float().requires_grad_()
            for parts in ([one[0] for one in encoded], [one[1] for one in encoded])
        )
        scale, bias = encoded[-1][2].detach().clone().requires_grad_(), encoded[-1][3]
        bias = None if bias is None else bias.detach().clone().requires_grad_()
        loss = self.loss(images_BD, texts_BD, scale, bias)
        self._scaled(loss).backward()
        image_gradients, text_gradients = (_gradient(one).split(self.micro_batch) for one in (images_BD, texts_BD))
        for number, micro in enumerate(micro_batches):
            final = number == len(micro_batches) - 1
            with self._exchanged(last and final):
                images_MD, texts_MD, scale_again, bias_again = self._encoded(*micro, (*place, number))
                outputs = [images_MD, texts_MD]
                gradients = [image_gradients[number].to(images_MD.dtype), text_gradients[number].to(texts_MD.dtype)]
                if final:
                    outputs += [one for one in (scale_again, bias_again) if one is not None]
                    gradients += [_gradient(one) for one in (scale, bias) if one is not None]
                torch.autograd.backward(outputs, gradients)
        return loss.detach()

    def _encoded(
        self, images_BCHW: "torch.Tensor", tokens_BL: "torch.Tensor", place: tuple[int, ...]
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]":
        """`place` (step, and numbers within it) decides what a model draws at random, such as dropped patches."""
        import torch

        stream = np.random.SeedSequence([self.recipe.seed, _RANDOM, self.world.rank, *place])
        torch.manual_seed(int(stream.generate_state(1)[0]))
        images_BCHW = normalised(images_BCHW.to(self.world.device, non_blocking=True))
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.world.device.type, dtype=lower, enabled=lower is not None):
            encoded: tuple[Any, ...] = self.towers(images_BCHW, tokens_BL)
        return encoded  # type: ignore[return-value]

    def _scaled(self, loss: "torch.Tensor") -> "torch.Tensor":
        part = loss / self.recipe.accumulation_steps
        return part if self.scaler is None else self.scaler.scale(part)

    def _exchanged(self, exchanged: bool) -> AbstractContextManager[None]:
        """DDP's ranks exchange the sum of their gradients once a step. FSDP's do at each backward: whole ones don't fit."""
        return nullcontext() if exchanged or not hasattr(self.towers, "no_sync") else self.towers.no_sync()


def _gradient(tensor: "torch.Tensor") -> "torch.Tensor":
    assert tensor.grad is not None
    return tensor.grad


def _share(recipe: Recipe, world: World, batch_size: int) -> int:
    """Pairs of a contrastive batch on each rank."""
    share, rest = divmod(batch_size, world.ranks * recipe.accumulation_steps)
    if rest:
        raise CannotTrainSo(
            f"a batch of {batch_size} can't be cut into {recipe.accumulation_steps} contrastive batches on {world.ranks} ranks:"
            " choose a batch_size that both divide"
        )
    return share
