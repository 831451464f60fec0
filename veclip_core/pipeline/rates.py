"""Rates of a captioner on a device: taken from captions made before, or measured on made-up pictures and pairs."""

import platform
import time
from collections.abc import Mapping
from typing import Any

from veclip_core import storage
from veclip_core.captioning.captioners import STAND_IN, Captioner
from veclip_core.captioning.engines.base import opened
from veclip_core.captioning.fuse import FuseOperation, fuse_rows
from veclip_core.mendable import Mendable
from veclip_core.pipeline import engines
from veclip_core.pipeline.budget import Estimate, estimate, rate_of
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_core.shards import Totals, read_current

TABLE = "benchmarks/captioning.json"
SIZE = (640, 480)
"""Pixels of the made-up pictures: a common web picture, before a model's own scaling."""
WARM_UP = 8


class NoRates(Mendable):
    """Nothing was measured yet; the message says what measures it."""


def estimate_scale(settings: Settings, scale: Scale, like: Scale, devices: int, success: float) -> Estimate:
    """What the captions of `scale` will take, at the rates of captions made for the scale `like` on this root.

    Raises:
        NoRates: when neither captions nor a benchmark of this captioner are there.
    """
    captioner = engines.captioner_of(scale, settings)
    rates, samples_a_picture, measured_on = rates_of(settings, captioner, like)
    downloads = read_current(settings.root, scale.source.name, "download", scale.name)
    urls = read_current(settings.root, scale.source.name, "list_urls", scale.name)
    listed = urls.rows_ok if urls and not urls.partial else scale.parts * scale.source.rows_per_part
    # What was made of a trial says nothing of the whole.
    pictures = downloads.rows_ok if downloads and not downloads.partial else round(listed * success)
    return estimate(
        scale,
        rates,
        pictures=pictures,
        samples=round(pictures * samples_a_picture),
        devices=devices,
        device_hour_price=settings.device_hour_price,
        measured_on=measured_on,
    )


def rates_of(settings: Settings, captioner: Captioner, like: Scale) -> tuple[dict[str, float], float, str]:
    """Stage to rows a device's second, samples (AltTexts) a picture, and where that was measured."""
    models = {"describe": captioner.describer, "fuse": captioner.fuser}
    if captioner.one_pass:
        models = {"fuse": captioner.describer}
    totals = {stage: _totals(settings.root, like.source.name, stage, model) for stage, model in models.items()}
    made = {stage: rate_of(found, settings.tensor_parallel) for stage, found in totals.items() if found}
    if len(made) == len(models) and all(made.values()):
        described, fused = totals.get("describe"), totals["fuse"]
        samples = fused.rows_in / described.rows_in if described and fused and described.rows_in else 1.0
        return made, samples, f"captions of source {like.source.name} at {settings.root}"
    for row in reversed(_table(settings)):
        if (row["describer"], row["fuser"]) == (captioner.describer, captioner.fuser):
            rates = {stage: row[f"{stage}_per_s"] for stage in models}
            return rates, 1.0, f"benchmark of {row['when']} on {row['device']}"
    raise NoRates(
        f"nothing was measured with {captioner.describer} and {captioner.fuser or 'one pass'} at {settings.root}: run"
        " `veclip run vecap --canary 0.1%`, or `veclip benchmark`, on the machine that will do it"
    )


def _totals(root: str, source: str, stage: str, model: str) -> Totals | None:
    """The sums over all markers of a stage that this model made."""
    folder = storage.join(root, source, stage)
    names = storage.list_files(folder)
    markers: list[Mapping[str, Any]] = []
    for name in names:
        identity, _, rest = name.partition("/")
        if rest == "config.json" and _made_by(model, storage.read_json(storage.join(folder, name))["config"]):
            found = [each for each in names if each.startswith(f"{identity}/part-") and each.endswith(".success.json")]
            markers += [storage.read_json(storage.join(folder, each)) for each in found]
    return Totals.of(markers) if markers else None


def _made_by(model: str, config: Mapping[str, Any]) -> bool:
    deciding = config.get("describer", config)
    if "engine" not in deciding:
        return model == STAND_IN and "features" in deciding
    named = deciding["engine"]["model"]
    return (
        named == model
        or named == model.rstrip("/").rpartition("/")[2]
        or (model == engines.SMALL_FUSER and named == engines.SMOLLM2)
    )


def measure_rates(settings: Settings, scale: Scale, pictures: int, pairs: int) -> str:
    """Measure, add a row to the root's table, and return the table as text."""
    captioner = engines.captioner_of(scale, settings)
    if captioner.one_pass:
        raise NoRates("one pass is measured by a canary: `veclip run vecap --canary 0.1%`")
    describing = engines.describe_operation(scale, settings)
    images = _made_up_pictures(pictures + WARM_UP)
    with describing.opener() as describer:  # type: ignore[attr-defined]
        describer.describe(iter(images[:WARM_UP]))
        started = time.monotonic()
        described = describer.describe(iter(images[WARM_UP:]))
        describe_s = time.monotonic() - started
    fusing = engines.fuse_operation(scale, settings)
    assert isinstance(fusing, FuseOperation)
    with opened(fusing.config.engine, fusing.runtime) as engine:
        texts = _made_up_pairs(pairs + WARM_UP, fusing)
        fuse_rows(texts[:WARM_UP], engine, fusing.config)
        started = time.monotonic()
        fused = fuse_rows(texts[WARM_UP:], engine, fusing.config)
        fuse_s = time.monotonic() - started
    candidates = [candidate for row in fused for candidate in row]
    row = {
        "when": time.strftime("%Y-%m-%d"),
        "device": _device(),
        "threads": settings.threads,
        "engine": settings.engine,
        "describer": captioner.describer,
        "fuser": captioner.fuser,
        "picture": f"{SIZE[0]} x {SIZE[1]}",
        "describe_per_s": round(len(described) / describe_s, 3),
        "describe_tokens_per_s": round(sum(one.detail.get("tokens", 0) for one in described) / describe_s, 1),
        "fuse_per_s": round(pairs / fuse_s, 3),
        "fuse_prompt_tokens_per_s": round(sum(candidate.prompt_tokens for candidate in candidates) / fuse_s, 1),
        "fuse_tokens_per_s": round(sum(candidate.completion_tokens for candidate in candidates) / fuse_s, 1),
    }
    table = [*_table(settings), row]
    storage.write_json(storage.join(settings.root, TABLE), table)
    return _as_text(table)


def _table(settings: Settings) -> list[dict[str, Any]]:
    try:
        return list(storage.read_json(storage.join(settings.root, TABLE)))
    except FileNotFoundError:
        return []


def _as_text(table: list[dict[str, Any]]) -> str:
    names = list(table[-1])
    cells = [names, *([str(row.get(name, "")) for name in names] for row in table)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _made_up_pictures(count: int) -> list[Any]:
    """Smooth noise, each another: as large as a web picture, and as slow to scale."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    small = random.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC) for pixels in small]


def _made_up_pairs(count: int, fusing: FuseOperation) -> list[tuple[str, str]]:
    """AltTexts and VeCs as long as real ones, each another."""
    examples = [(alt, vec) for prompt in fusing.config.prompts for alt, vec, _ in prompt.examples] or [
        ("Rustic bathroom style.", "A bathroom with a window, a sink, a toilet and wooden shelves along the wall.")
    ]
    return [(f"{examples[n % len(examples)][0]} {n}", examples[n % len(examples)][1]) for n in range(count)]


def _device() -> str:
    import torch

    return (
        str(torch.cuda.get_device_name()) if torch.cuda.is_available() else platform.processor() or platform.machine()
    )
