"""A canary: a small, hash-chosen slice is captioned first, and says whether the whole is worth its money."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from veclip_core.evaluation.report.caption_page import CaptionQuality
from veclip_core.pipeline import engines, executors, quality
from veclip_core.pipeline.budget import Estimate, estimate, rate_of
from veclip_core.pipeline.captions import make_canary
from veclip_core.pipeline.data import Chain
from veclip_core.samples import BLOCKED
from veclip_core.shards import Totals

MIN_FUSED = 0.5
"""Share of samples whose VeCap must be the model's own."""
MAX_DESCRIBE_ERRORS = 0.05
MAX_REFUSED = 0.1
"""Share of samples with a text refused before fusion."""


@dataclass(frozen=True)
class Verdict:
    """What a canary says."""

    go: bool
    reasons: Sequence[str]
    """Against it; empty for a go."""
    estimate: Estimate
    page: str

    @property
    def sentence(self) -> str:
        return "Go." if self.go else f"No go: {'; '.join(self.reasons)}."


def canary(chain: Chain, share: float) -> Verdict:
    """Caption `share` of the downloaded shards and judge: quality, refusals, projected cost. The shards count as done later."""
    made, styled = make_canary(chain, share)
    sets = {name: made.sets[name] for name in quality.STAGES}
    found = quality.measure(chain, sets, made.keys, partial=True)
    generating = _generating(chain)
    further = {
        f"{stage} {style}": Totals.of(captions.sets[stage].markers(captions.keys).values())
        for style, captions in styled.items()
        for stage in generating
        if captions.sets[stage] != made.sets[stage]
    }
    projected = project(chain, found, f"{len(made.keys):,} shards of this canary", further)
    reasons = objections(found, projected, chain.settings.max_cost, chain.settings.max_hours)
    for style, captions in styled.items():
        sets = {name: captions.sets[name] for name in quality.STAGES}
        of_style = quality.measure(chain, sets, captions.keys, partial=True, style=style)
        reasons += [f"{style}: {reason}" for reason in objections(of_style, projected, None, None)]
        quality.write_page(chain, of_style, f"canary-{style}")
    verdict = Verdict(not reasons, reasons, projected, "")
    page = quality.write_page(chain, replace(found, verdict=verdict.sentence, costs=costs_table(projected)), "canary")
    return replace(verdict, page=page)


def project(
    chain: Chain, found: CaptionQuality, measured_on: str, further: Mapping[str, Totals] | None = None
) -> Estimate:
    """The whole scale at the rates and yields of what was captioned; `further`: the sums of styles' stages (`fuse short`)."""
    downloads = chain.current("download", "shards")
    describe, fuse = found.totals["describe"], found.totals["fuse"]
    executor = executors.for_captions(chain.settings, engines.fuse_operation(chain.scale, chain.settings))
    pictures = downloads.rows_ok
    if downloads.partial:  # a trial: the whole is as many times larger as it has parts
        pictures = round(pictures * max(1.0, chain.scale.parts / downloads.parts))
    samples = round(pictures * fuse.rows_in / describe.rows_in) if describe.rows_in else pictures
    return estimate(
        chain.scale,
        {
            stage: rate_of(totals, chain.settings.tensor_parallel)
            for stage, totals in {
                **{name: found.totals[name] for name in _generating(chain)},
                **(further or {}),
            }.items()
        },
        pictures=pictures,
        samples=samples,
        devices=executors.devices(chain.settings, executor),
        device_hour_price=chain.settings.device_hour_price,
        measured_on=measured_on,
    )


def _generating(chain: Chain) -> list[str]:
    """The stages that hold devices."""
    makers = (engines.describe_operation, engines.check_operation, engines.fuse_operation)
    operations = [make(chain.scale, chain.settings) for make in makers]
    return [operation.name for operation in operations if executors.needs_engine(operation)]


def objections(
    found: CaptionQuality, projected: Estimate, max_cost: float | None, max_hours: float | None
) -> list[str]:
    """What speaks against captioning the whole, in words with numbers."""
    against = []
    fused = found.shares().get("fused", 0.0)
    if fused < MIN_FUSED:
        against.append(f"only {fused:.0%} of the VeCaps are the model's own (at least {MIN_FUSED:.0%} are wanted)")
    describe, check = found.totals["describe"], found.totals["check"]
    shown = describe.rows_in - sum(count for reason, count in describe.errors.items() if reason in BLOCKED)
    lost = 1 - describe.rows_ok / shown if shown else 1.0
    if lost > MAX_DESCRIBE_ERRORS:
        against.append(f"{lost:.0%} of the pictures got no description (at most {MAX_DESCRIBE_ERRORS:.0%})")
    refused = (check.fallbacks + sum(check.errors.values())) / check.rows_in if check.rows_in else 0.0
    if refused > MAX_REFUSED:
        against.append(f"{refused:.0%} of the samples had a text refused (at most {MAX_REFUSED:.0%})")
    if max_cost is not None and projected.cost > max_cost:
        against.append(f"the whole would cost {projected.cost:,.0f}, and {max_cost:,.0f} is allowed")
    if max_hours is not None and projected.hours > max_hours:
        against.append(f"the whole would take {projected.hours:,.1f} hours, and {max_hours:,.1f} are allowed")
    return against


def costs_table(projected: Estimate) -> list[Mapping[str, Any]]:
    """Rows for people: a stage each, and the sum."""
    rows: list[Mapping[str, Any]] = [
        {
            "stage": stage.stage,
            "rows": f"{stage.rows:,}",
            "rows a device's second": f"{stage.rows_per_device_second:,.2f}",
            "device hours": f"{stage.device_hours:,.2f}",
            "cost": f"{stage.cost:,.2f}",
        }
        for stage in projected.stages
    ]
    together = {
        "stage": f"together, {projected.hours:,.2f} hours on {projected.devices} devices",
        "rows": "",
        "rows a device's second": "",
    }
    return [*rows, together | {"device hours": f"{projected.device_hours:,.2f}", "cost": f"{projected.cost:,.2f}"}]
