"""What a training is told besides its recipe, what it counts, and what it reports."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from veclip_core.training.checkpoint import Checkpoint
from veclip_core.training.texts import T5_HUB
from veclip_core.training.world import World

if TYPE_CHECKING:
    from veclip_core.training.data import Batch


@dataclass(frozen=True)
class Runtime:
    """What changes how a training runs, not what it is."""

    cache_folder: Path | None = None
    """Where decoded pictures are kept between trainings; None decodes at every use."""
    max_cache_bytes: int = 4 * 1024**3
    """Above this, pictures are decoded at every use too."""
    max_tar_cache_bytes: int = 0
    """Remote tars are copied into `cache_folder` where a manifest's pictures, as they are stored, take no more than this."""
    max_piece_bytes: int = 8 * 1024**3
    """Of each rank's memory, for the pieces of remote tars that it reads from (`WindowPlan.rows_in_reach`)."""
    t5_tokenizer: str = T5_HUB
    """Where T5's tokenizer is, for recipes that read with it: a folder or hub id."""
    device: str = "auto"
    """`auto`: the GPU where there is one."""
    threads: int | None = None
    """Of the CPU; None keeps what the process has. Bits are equal only between runs with the same number."""
    loader_threads: int = 2
    progress_bar: bool = True
    """On the terminal; off where several trainings run side by side."""
    log_every_steps: int = 10
    checkpoint_every_steps: int = 50
    micro_batch: int | None = None
    """Pairs that go through the towers at once on each rank (gradient cache): less memory, more time, the same gradient."""
    checkpoint_activations: bool = False
    """Compute the blocks of the transformers again for the gradient in place of keeping what they computed."""
    compile: bool = False
    """torch.compile, of the blocks of the transformers or a ResNet."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether each of several ranks holds the whole model and its optimizer, or its share of them (FSDP2)."""


@dataclass(frozen=True)
class RunLabels:
    """How the run is found in the tracker."""

    experiment: str = "training"
    name: str = "training"
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainReport:
    """What a training did, interruptions included."""

    steps: int
    samples: int
    seconds: float
    """Inside the loop, over all its starts."""
    samples_per_s: float
    final_loss: float
    """Mean of the last logged interval."""
    fallbacks: int
    """Samples whose drawn caption was unusable."""
    unreadable: int
    """Samples whose picture could not be read, and in whose place others of their batch were taken."""
    truncated: int
    """Texts that were longer than the context: their end was not read."""
    choices: Mapping[str, int]
    """Samples by the caption source their text came from."""
    checkpoint: str
    run_id: str | None
    identity: str
    """Of recipe and manifest together."""
    manifest_digest: str
    batch_size: int
    precision: str
    device: str
    """The leader's, by name, at its last start."""
    ranks: int
    """At its last start."""
    threads: int
    """Of the CPU, at its last start."""
    parameters: int
    vocab_size: int
    resumed_at: int
    """Steps found done when this start began; 0 for an undisturbed run."""
    history: tuple[Mapping[str, float], ...]
    """The logged metrics, each with its `step`."""
    rows: int | None = None
    """Of the manifest that were read, a fraction of it perhaps; None of a training from before they were counted."""


@dataclass
class Done:
    """What is counted on the way, and goes on counting after a restart."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    fallbacks: int = 0
    unreadable: int = 0
    truncated: int = 0
    choices: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    interval_losses: list[float] = field(default_factory=list)
    """Since the last log entry."""
    run_id: str | None = None

    def add(self, samples: int, loss: float) -> None:
        """A step."""
        self.step += 1
        self.samples += samples
        self.interval_losses.append(loss)

    def count(self, fallbacks: int, unreadable: int, truncated: int, sources: Mapping[str, int]) -> None:
        """What a rank has read in some steps."""
        self.fallbacks += fallbacks
        self.unreadable += unreadable
        self.truncated += truncated
        self.choices = dict(sorted((Counter(self.choices) + Counter(sources)).items()))


class Seen:
    """What this rank has read since it was last counted together with what the others have."""

    def __init__(self) -> None:
        self._clear()

    def add(self, batch: "Batch") -> None:
        self._fallbacks += batch.fallbacks
        self._unreadable += batch.unreadable
        self._truncated += batch.truncated
        self._sources.update(batch.sources)

    def count(self, done: Done, world: World) -> None:
        mine = (self._fallbacks, self._unreadable, self._truncated, self._sources)
        for of_rank in world.gathered(mine):
            done.count(*of_rank)
        self._clear()

    def _clear(self) -> None:
        self._fallbacks, self._unreadable, self._truncated, self._sources = 0, 0, 0, Counter[str]()


_TRACKED = (
    "identity",
    "manifest_digest",
    "rows",
    "batch_size",
    "precision",
    "device",
    "ranks",
    "threads",
    "parameters",
    "vocab_size",
)


def tracked(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a training's run, of its checkpoint's state."""
    return {**state["recipe"], **{name: state[name] for name in _TRACKED if name in state}}


def report_of(saved: Checkpoint, state: Mapping[str, Any], resumed_at: int) -> TrainReport:
    done = Done(**state["done"])
    return TrainReport(
        steps=done.step,
        samples=done.samples,
        seconds=done.seconds,
        samples_per_s=done.samples / max(done.seconds, 1e-9),
        final_loss=done.history[-1]["loss"],
        fallbacks=done.fallbacks,
        unreadable=done.unreadable,
        truncated=done.truncated,
        choices=done.choices,
        checkpoint=saved.uri,
        run_id=done.run_id,
        identity=state["identity"],
        manifest_digest=state["manifest_digest"],
        batch_size=state["batch_size"],
        precision=state["precision"],
        device=state.get("device_name", state["device"]),  # older checkpoints have the type alone
        ranks=state["ranks"],
        threads=state["threads"],
        parameters=state["parameters"],
        vocab_size=state["vocab_size"],
        resumed_at=resumed_at,
        history=tuple(done.history),
        rows=state.get("rows"),
    )
