"""What a training will be, before anything is paid for: steps, FLOPs, memory, hours and money."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from veclip_core.mendable import Mendable
from veclip_core.pipeline import rate_table
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.mixtures import current_mixture
from veclip_core.pipeline.training import manifest_of, manifest_table
from veclip_core.pipeline.training_rates import TrainingRate, Way, rate_for
from veclip_core.shards import NotMadeYet
from veclip_core.training.arms import MIXTURE, arm_named
from veclip_core.training.cost import Memory, forward_flops, memory_of, size_of, training_flops
from veclip_core.training.data import tokenizer_for
from veclip_core.training.devices import device_named
from veclip_core.training.model import architecture, precision_of
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import T5_HUB, BpeTokenizer, T5Tokenizer
from veclip_core.training.world import World


class PlanError(Mendable):
    """A plan can't be made of what was asked."""


@dataclass(frozen=True)
class Machines:
    """What a training is planned on."""

    devices: int = 1
    device: str = ""
    """The GPU's name; by default what this machine has."""
    device_hour_price: float = 0.0
    """In any currency; 0 where it is not known."""
    mfu: float | None = None
    """Share of the devices' peak that is reached, what is computed twice included; by default a measured rate is taken."""
    micro_batch: int | None = None
    """Samples at a time on a device, with a gradient cache; by default all of its share of the batch, without."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_activations: bool = False
    precision: str | None = None
    """By default the recipe's, and where that is `auto` bf16 on a named device, on this machine's what a training takes there."""
    compile: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps and samples are the recipe's, parameters and FLOPs are counted, memory, hours and cost are estimates."""

    scale: str
    arm: str
    model: str
    parameters: int
    parameters_from: str
    steps: int
    batch_size: int
    samples: int
    rows: int
    """An epoch's."""
    rows_from: str
    epochs: float
    text_tokens: int
    """At most: every text as long as the context."""
    flops_per_sample: int
    """Forward and backward pass, and what is computed twice to save memory."""
    flops: float
    devices: int
    device: str
    memory: Memory
    """Of one device, in bytes."""
    samples_per_s: float | None
    """Of all devices together; None where nothing tells."""
    hours: float | None
    cost: float | None
    rate_from: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total}}


def make_plan(chain: Chain, arm: str, recipe: Recipe, machines: Machines) -> Plan:
    """The plan of one training. Nothing is downloaded, allocated or trained.

    Raises:
        NotMadeYet: for the scale `own` without a manifest, whose size nobody can name.
        PlanError: when the batch can't be shared by the devices.
        TokenizerMissing: of a recipe with T5's.
    """
    rows, rows_from = _rows(chain, arm)
    if recipe.data_fraction < 1:
        rows, rows_from = round(rows * recipe.data_fraction), f"about {recipe.data_fraction:g} of {rows_from}"
    batch_size = min(recipe.batch_size, rows)
    if batch_size % machines.devices:
        raise PlanError(
            f"a batch of {batch_size:,} can't be shared by {machines.devices} devices: choose a number that divides it"
        )
    vocab_size, exact = _vocabulary(chain, arm, recipe)
    description = architecture(recipe, vocab_size)
    way = Way.of(
        recipe,
        batch_size,
        machines.devices,
        precision=machines.precision or _precision(recipe, machines.device),
        micro_batch=machines.micro_batch,
        checkpoint_activations=machines.checkpoint_activations,
        parallel=machines.parallel,
        compile=machines.compile,
    )
    half_precision = way.precision != "fp32"
    size = size_of(description, half_precision)
    forward = forward_flops(description)
    flops = training_flops(forward, computed_twice=(way.micro_batch is not None) + way.checkpoint_activations)
    samples = recipe.steps * batch_size
    device = machines.device or rate_table.device_name()
    measured = None if machines.mfu is not None else rate_for(chain.settings, recipe, device, way)
    rate, rate_from = _rate(flops, device, machines, way, measured)
    hours = samples / rate / 3600 if rate else None
    return Plan(
        scale=chain.scale.name,
        arm=arm,
        model=recipe.model,
        parameters=size.parameters,
        parameters_from="counted"
        if exact
        else "counted with CLIP's whole vocabulary: the manifest's own will be smaller",
        steps=recipe.steps,
        batch_size=batch_size,
        samples=samples,
        rows=rows,
        rows_from=rows_from,
        epochs=round(samples / rows, 2),
        text_tokens=samples * recipe.context_length,
        flops_per_sample=flops,
        flops=float(flops) * samples,
        devices=machines.devices,
        device=device,
        memory=memory_of(
            size,
            batch_size=batch_size // recipe.accumulation_steps,
            embed_dim=description["embed_dim"],
            ranks=machines.devices,
            micro_batch=machines.micro_batch,
            parallel=machines.parallel,
            checkpoint_activations=machines.checkpoint_activations,
            half_precision=half_precision,
            ema=recipe.ema_decay is not None,
        ),
        samples_per_s=rate,
        hours=hours,
        cost=hours * machines.devices * machines.device_hour_price if hours and machines.device_hour_price else None,
        rate_from=rate_from,
    )


def _rows(chain: Chain, arm: str) -> tuple[int, str]:
    """Rows that an epoch reads, and where the number is from."""
    asset = arm_named(arm).manifest
    try:
        if asset == MIXTURE:
            return current_mixture(chain).rows_per_epoch, f"{asset}_{chain.scale.name}"
        current = manifest_of(chain, arm)
    except NotMadeYet:
        if chain.scale.name == "own":
            raise
        nominal = chain.scale.parts * chain.scale.source.rows_per_part
        return nominal, f"the scale's nominal size: {asset}_{chain.scale.name} is not made yet, and will have fewer"
    part = ", which is partial" if current.partial else ""
    return current.rows_ok, f"{asset}_{chain.scale.name}{part}"


def _vocabulary(chain: Chain, arm: str, recipe: Recipe) -> tuple[int, bool]:
    """Rows of the token embedding, and whether that is known: a vocabulary cut to a manifest needs one."""
    if recipe.tokenizer == "bpe-in-use":
        try:
            manifest, _ = manifest_table(chain, arm, recipe.weights)
        except NotMadeYet:
            return BpeTokenizer(recipe.context_length).vocab_size, False
        return tokenizer_for(recipe, manifest).vocab_size, True
    if recipe.tokenizer == "t5":
        return T5Tokenizer.load(recipe.context_length, chain.settings.t5_tokenizer or T5_HUB).vocab_size, True
    return BpeTokenizer(recipe.context_length).vocab_size, True


def _precision(recipe: Recipe, device: str) -> str:
    """What a training computes in where nothing says otherwise."""
    if recipe.precision == "auto" and device:
        return "bf16"
    return precision_of(recipe, World.alone().device)


def _rate(
    flops: int, device: str, machines: Machines, way: Way, measured: TrainingRate | None
) -> tuple[float | None, str]:
    """Samples a second of all devices together, and what says so."""
    if machines.mfu is not None:
        kind = device_named(device)
        if kind is None:
            raise PlanError(
                f"the peak of {device!r} is not known (training/devices.py), so --mfu says nothing: name another --device, or"
                " measure with `make gpu-smoke`"
            )
        rate = machines.devices * kind.tflops * 1e12 * machines.mfu / flops
        return rate, f"{machines.mfu:.0%} of {kind.tflops:,g} TFLOPS a device, as given ({kind.source})"
    if measured is None:
        return None, (
            f"nothing was measured with this model on {device!r} in this way ({_told(way)}) at this root: `make gpu-smoke` or a"
            " training there measures, or give --device and --mfu"
        )
    scaled = ", taken to grow with their number" if machines.devices != measured.ranks else ""
    return (
        machines.devices * measured.samples_per_device_second,
        f"measured: {measured.samples_per_s:,.1f} samples/s on {measured.ranks} x {measured.device} in {_told(way)}"
        f" ({measured.what}){scaled}",
    )


def _told(way: Way) -> str:
    """A way of computing, in words."""
    parts = [
        way.precision,
        f"micro-batches of {way.micro_batch:,}" if way.micro_batch is not None else "",
        "activations computed twice" if way.checkpoint_activations else "",
        "FSDP" if way.parallel == "fsdp" else "",
        "compiled" if way.compile else "",
    ]
    return ", ".join(filter(None, parts))
