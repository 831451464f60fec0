"""Limits on what a captioning run may cost, and what a whole scale will: hours and money from measured rates."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from veclip_core.scales import Scale
from veclip_core.settings import Settings, SettingsError


@dataclass(frozen=True)
class Limit:
    """Hours and money, from now on."""

    hours: float | None
    cost: float | None
    device_hour_price: float
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, settings: Settings) -> "Limit":
        """Raises SettingsError for a limit on money without a price."""
        if settings.max_cost is not None and not settings.device_hour_price:
            raise SettingsError(
                "a limit on money needs a price: set VECLIP_DEVICE_HOUR_PRICE, or limit the hours (VECLIP_MAX_HOURS)"
            )
        return cls(settings.max_hours, settings.max_cost, settings.device_hour_price)

    @property
    def set(self) -> bool:
        return self.hours is not None or self.cost is not None

    def allows(self, devices: int) -> Callable[[], bool]:
        """Whether the next shard may begin, when `devices` are paid for."""

        def within() -> bool:
            hours = (time.monotonic() - self.started) / 3600
            spent = hours * devices * self.device_hour_price
            return not (
                (self.hours is not None and hours >= self.hours) or (self.cost is not None and spent >= self.cost)
            )

        return within


@dataclass(frozen=True)
class StageCost:
    """One stage of a whole scale."""

    stage: str
    rows: int
    rows_per_device_second: float
    """Measured."""
    device_hours: float
    cost: float


@dataclass(frozen=True)
class Estimate:
    """What the captions of a scale will take."""

    stages: tuple[StageCost, ...]
    devices: int
    measured_on: str

    @property
    def device_hours(self) -> float:
        return sum(stage.device_hours for stage in self.stages)

    @property
    def hours(self) -> float:
        """On the clock, with all devices busy."""
        return self.device_hours / self.devices

    @property
    def cost(self) -> float:
        return sum(stage.cost for stage in self.stages)


def estimate(
    scale: Scale,
    rates: Mapping[str, float],
    *,
    pictures: int,
    samples: int,
    devices: int,
    device_hour_price: float,
    measured_on: str,
) -> Estimate:
    """`pictures` are described, `samples` (a picture with an AltText) fused.

    `rates`: rows a device's second of `describe`, `fuse`, and where a model judges `check`; of a style's `fuse short`.
    """
    stages = []
    for stage, rate in rates.items():
        rows = pictures if stage.startswith("describe") else samples
        hours = rows / rate / 3600
        stages.append(StageCost(stage, rows, rate, hours, hours * device_hour_price))
    return Estimate(tuple(stages), devices, measured_on)


def rate_of(totals: Any, tensor_parallel: int) -> float:
    """Rows a device's second, from the sums over a stage's markers."""
    return totals.rows_in / totals.worker_seconds / tensor_parallel if totals.worker_seconds else 0.0
