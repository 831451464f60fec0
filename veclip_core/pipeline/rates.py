"""Rates of a captioner on a device: taken from captions made before, or measured on made-up pictures and pairs."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veclip_core import storage
from veclip_core.captioning.captioners import RELEASED
from veclip_core.captioning.describe import DescribeConfig
from veclip_core.captioning.engines.base import opened
from veclip_core.captioning.fuse import FuseOperation, fuse_rows
from veclip_core.captioning.styles import Style
from veclip_core.config import Config
from veclip_core.mendable import Mendable
from veclip_core.pipeline import engines, rate_table
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
    rates, samples_a_picture, measured_on = rates_of(scale, settings, like)
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


def rates_of(scale: Scale, settings: Settings, like: Scale) -> tuple[dict[str, float], float, str]:
    """Stage (`fuse`, of a style `fuse short`) to rows a device's second, samples (AltTexts) a picture, and where that was measured.

    A style that was not made yet takes the rate of the scale's own captions.

    Raises:
        NoRates: see `estimate_scale`.
    """
    captioner = engines.captioner_of(scale, settings)
    wanted = _generating(scale, settings, None)
    found = {stage: _made_before(settings.root, like.source.name, stage, config) for stage, config in wanted.items()}
    own = {stage: rate_of(made.totals, settings.tensor_parallel) for stage, made in found.items() if made}
    if len(own) == len(wanted) and all(own.values()):
        samples, measured_on = _samples_a_picture(found), f"captions of source {like.source.name} at {settings.root}"
    else:
        row = next(
            (
                row
                for row in reversed(rate_table.read(settings, TABLE))
                if (row["describer"], row["fuser"]) == (captioner.describer, captioner.fuser)
            ),
            None,
        )
        if row is None or "check" in wanted:
            raise NoRates(
                f"nothing was measured with {captioner.describer} and {captioner.fuser or 'one pass'} at {settings.root}: run"
                " `veclip run vecap --canary 0.1%`, or `veclip benchmark`, on the machine that will do it"
            )
        own = {stage: row[f"{stage}_per_s"] for stage in wanted}
        samples, measured_on = 1.0, f"benchmark of {row['when']} on {row['device']}"
    rates = dict(own)
    for style in engines.styles_of(scale, settings):
        for stage, config in _generating(scale, settings, style).items():
            made = _made_before(settings.root, like.source.name, stage, config)
            rate = rate_of(made.totals, settings.tensor_parallel) if made else 0.0
            rates[f"{stage} {style.name}"] = rate or own[stage]
    return rates, samples, measured_on


def _generating(scale: Scale, settings: Settings, style: Style | None) -> dict[str, Config]:
    """The configurations of the stages that hold devices, but for the weights' revisions."""
    captioner = engines.captioner_of(scale, settings)
    if captioner.describer == RELEASED:
        return {}
    anew = style is None or engines.own_description(captioner, style)
    found: dict[str, Config] = {}
    if anew and not captioner.one_pass:
        found["describe"] = DescribeConfig(describer=engines.describing_config(captioner, style))
    if anew and settings.ethics == "judge":
        found["check"] = engines.check_config_for(scale, settings, style)
    return found | {"fuse": engines.fusing_config(captioner, style)}


@dataclass(frozen=True)
class _Made:
    """What one identity of a stage has done."""

    identity: str
    inputs: Mapping[str, str]
    totals: Totals


def _made_before(root: str, source: str, stage: str, wanted: Config) -> _Made | None:
    """The identity with most rows among those that were made with a configuration."""
    folder = storage.join(root, source, stage)
    names = storage.list_files(folder)
    made = []
    for name in names:
        identity, _, rest = name.partition("/")
        if rest != "config.json":
            continue
        found = storage.read_json(storage.join(folder, name))
        if _deciding(found["config"]) == _deciding(wanted.model_dump(mode="json")):
            markers = [
                each for each in names if each.startswith(f"{identity}/part-") and each.endswith(".success.json")
            ]
            contents = storage.read_many([storage.join(folder, each) for each in markers]).values()
            made.append(_Made(identity, found["inputs"], Totals.of(map(json.loads, contents))))
    return max(made, key=lambda one: one.totals.rows_in, default=None)


def _deciding(config: Any) -> Any:
    """What of a stage's configuration tells on its speed: not the revision, the folder or the thresholds of its check."""
    if isinstance(config, Mapping):
        kept = {name: _deciding(value) for name, value in config.items() if name not in ("revision", "thresholds")}
        if isinstance(kept.get("model"), str):
            kept["model"] = str(kept["model"]).rstrip("/").rpartition("/")[2]
        return kept
    return [_deciding(value) for value in config] if isinstance(config, list) else config


def _samples_a_picture(made: Mapping[str, _Made | None]) -> float:
    described, fused = made.get("describe"), made.get("fuse")
    if described and fused and fused.inputs.get("describe") == described.identity and described.totals.rows_in:
        return fused.totals.rows_in / described.totals.rows_in
    return 1.0


def measure_rates(settings: Settings, scale: Scale, pictures: int, pairs: int) -> str:
    """Measure, add a row to the root's table, and return the table as text."""
    captioner = engines.captioner_of(scale, settings)
    row = {
        "when": time.strftime("%Y-%m-%d"),
        "device": rate_table.device_name(),
        "threads": settings.threads,
        "engine": settings.engine,
        "describer": captioner.describer,
        "fuser": captioner.fuser,
        "picture": f"{SIZE[0]} x {SIZE[1]}",
        **describing_rates(settings, scale, pictures),
        **fusing_rates(settings, scale, pairs),
    }
    return rate_table.as_text(rate_table.add(settings, TABLE, row))


def describing_rates(settings: Settings, scale: Scale, pictures: int, warm_up: int = WARM_UP) -> dict[str, float]:
    """Pictures and generated tokens a second of the describing engine, once it is loaded and has done `warm_up` of them.

    Raises:
        NoRates: of a captioner of one pass.
    """
    _require_two_passes(settings, scale)
    describing = engines.describe_operation(scale, settings)
    images = _made_up_pictures(pictures + warm_up)
    with describing.opener() as describer:  # type: ignore[attr-defined]
        describer.describe(iter(images[:warm_up]))
        started = time.monotonic()
        described = describer.describe(iter(images[warm_up:]))
        seconds = time.monotonic() - started
    tokens = sum(one.detail.get("tokens", 0) for one in described)
    return {
        "describe_per_s": round(len(described) / seconds, 3),
        "describe_tokens_per_s": round(tokens / seconds, 1),
    }


def fusing_rates(settings: Settings, scale: Scale, pairs: int, warm_up: int = WARM_UP) -> dict[str, float]:
    """Pairs, tokens read and generated tokens a second of the fusing engine, once it is loaded and has done `warm_up` of them.

    Raises:
        NoRates: of a captioner of one pass.
    """
    _require_two_passes(settings, scale)
    fusing = engines.fuse_operation(scale, settings)
    assert isinstance(fusing, FuseOperation)
    with opened(fusing.config.engine, fusing.runtime) as engine:
        texts = _made_up_pairs(pairs + warm_up, fusing)
        fuse_rows(texts[:warm_up], engine, fusing.config)
        started = time.monotonic()
        fused = fuse_rows(texts[warm_up:], engine, fusing.config)
        seconds = time.monotonic() - started
    candidates = [candidate for row in fused for candidate in row]
    return {
        "fuse_per_s": round(pairs / seconds, 3),
        "fuse_prompt_tokens_per_s": round(sum(candidate.prompt_tokens for candidate in candidates) / seconds, 1),
        "fuse_tokens_per_s": round(sum(candidate.completion_tokens for candidate in candidates) / seconds, 1),
    }


def _require_two_passes(settings: Settings, scale: Scale) -> None:
    if engines.captioner_of(scale, settings).one_pass:
        raise NoRates("one pass is measured by a canary: `veclip run vecap --canary 0.1%`")


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
