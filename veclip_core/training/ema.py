"""A running average of the weights, which often evaluates better than the last ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of a model's parameters, from their initial values on; sharded where they are."""

    decay: float
    """Of the average, kept at each step."""
    averages: dict[str, "torch.Tensor"]

    @classmethod
    def of(cls, model: "torch.nn.Module", decay: float) -> "Ema":
        return cls(decay, {name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    def update(self, model: "torch.nn.Module") -> None:
        import torch

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                self.averages[name].lerp_(parameter, 1 - self.decay)
