"""The training loop: open_clip's model and loss, batches by step, a checkpoint that resumes exactly.

Killed at any moment and started again, the same command ends at the same weights, bit for bit, on the same machine with the
same numbers of ranks and threads. SIGTERM and SIGINT, at any rank, save a checkpoint first, but not
under Ray Train, where the last periodic one counts.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.leases import POLL_S, Lease, holder
from veclip_core.tracking import NoTracker, RunStatus, Tracker
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.checkpoint import Checkpoint
from veclip_core.training.data import Batch, Batches, pictures_for, rows_for, tokenizer_for
from veclip_core.training.devices import name_of
from veclip_core.training.guards import TrainingDiverged, is_suspect, refuse_divergence, refuse_no_number
from veclip_core.training.learner import CannotTrainSo, Learner
from veclip_core.training.live import LiveMetrics
from veclip_core.training.manifest_table import ManifestTable
from veclip_core.training.model import architecture, precision_of
from veclip_core.training.prefetch import Prefetched
from veclip_core.training.process import StopSignal, TrainingInterrupted, repeatable
from veclip_core.training.recipe import Recipe
from veclip_core.training.report import Done, RunLabels, Runtime, Seen, TrainReport, report_of, tracked
from veclip_core.training.saving import CheckpointWriter
from veclip_core.training.texts import T5_HUB, T5Tokenizer, tokenizer_from_json
from veclip_core.training.world import World

__all__ = [
    "RunLabels",
    "Runtime",
    "TrainReport",
    "TrainingDiverged",
    "TrainingInterrupted",
    "train",
    "training_identity",
]

logger = logging.getLogger(__name__)

Progress = Callable[[int, Mapping[str, float]], None]


def training_identity(recipe: Recipe, manifest: ManifestTable, t5: str = T5_HUB) -> str:
    """Decides a training's folder: equal when recipe and manifest are, and the tokenizer that comes from elsewhere.

    Raises TokenizerMissing, see `data.tokenizer_for`.
    """
    of = {"recipe": recipe.identity(), "manifest": manifest.digest}
    if recipe.tokenizer == "t5":
        of["tokenizer"] = T5Tokenizer.load(recipe.context_length, t5).digest
    return digest_of(of)


def train(
    recipe: Recipe,
    manifest: ManifestTable,
    out_dir: str | Path,
    *,
    runtime: Runtime | None = None,
    tracker: Tracker | None = None,
    labels: RunLabels | None = None,
    on_progress: Progress | None = None,
    world: World | None = None,
) -> TrainReport:
    """Train, or go on from the last checkpoint in `out_dir`, or report at once where the last step is done.

    A second process that wants the same training waits for the first, and then reports what that one made. Where there are
    several ranks, all call this with the same arguments; `tracker` and `on_progress` are the leader's alone.

    Args:
        out_dir: folder or URL of this training alone.
        on_progress: called with the step and its metrics at every logged step.
        world: this process among the ranks; alone by default.

    Raises:
        TrainingDiverged: with step, loss, gradient norm and temperature.
        CannotTrainSo: where recipe, runtime and ranks don't fit together.
        ValueError: when `out_dir` holds another training.
    """
    runtime, labels = runtime or Runtime(), labels or RunLabels()
    world = world or World.alone(runtime.device)
    if tracker is None or not world.leads:
        tracker = NoTracker()
    folder = str(out_dir)
    if world.first_of_machine:
        storage.remove_dead_scratch(folder)
    with _leased(folder, world) as lease:
        return _train(recipe, manifest, folder, runtime, tracker, labels, on_progress, world, lease)


def finished_report(folder: str, resumed_at: int) -> TrainReport:
    """Of a training whose last checkpoint is there."""
    last = checkpoints.find(folder)
    return report_of(last, last.state(), resumed_at)


@contextmanager
def _leased(folder: str, world: World) -> Iterator[Lease | None]:
    """Begins on all ranks when the leader has the training's lease, which the others do without."""
    leases = storage.join(folder, "leases")
    if world.ranks == 1:
        with Lease.wait_for(leases, "training") as lease:
            yield lease
        return
    held: Lease | None = None
    said = False
    # In turns, because no rank may wait in silence for as long as another training takes.
    while not world.told(held is not None):
        held = Lease.acquire(leases, "training") if world.leads else None
        if world.leads and held is None:
            if not said:
                logger.info("waiting for the training in %s, which %s works on", folder, holder(leases, "training"))
                said = True
            time.sleep(POLL_S)
    if held is None:
        yield None
        return
    with held:
        yield held


def _train(
    recipe: Recipe,
    manifest: ManifestTable,
    folder: str,
    runtime: Runtime,
    tracker: Tracker,
    labels: RunLabels,
    on_progress: Progress | None,
    world: World,
    lease: Lease | None,
) -> TrainReport:
    import torch

    identity = training_identity(recipe, manifest, runtime.t5_tokenizer)
    if len(set(world.gathered(identity))) > 1:
        raise CannotTrainSo(
            "the ranks found different recipes or manifests: one was made while they started, or machines have different versions"
            " of this package. Run the same again"
        )
    found = world.told(checkpoints.latest(folder) if world.leads else None)
    state = found.state() if found is not None else {}
    if found is not None and (held := state["identity"]) != identity:
        raise ValueError(
            f"{folder} holds another training ({held[:12]}, this one is {identity[:12]}): the recipe or the manifest changed. "
            "Name another folder, or delete this one."
        )
    if found is not None and found.step >= recipe.steps:
        logger.info("%s is done already", found.uri)
        return report_of(found, state, resumed_at=found.step)

    batches = _batches(recipe, manifest, runtime, world, state.get("tokenizer"))
    tokenizer, batch_size = batches.tokenizer, batches.plan.batch_size
    description, precision = architecture(recipe, tokenizer.vocab_size), precision_of(recipe, world.device)
    # Every forward pass seeds torch; whoever called gets the CPU's random state back.
    if state.get("precision", precision) != precision:
        logger.warning(
            "the training began in %s and goes on in %s: another machine, or another setting of the recipe's `auto`",
            state["precision"], precision,
        )  # fmt: skip
    with repeatable(runtime.threads), torch.random.fork_rng(devices=[]), StopSignal() as stop:
        learner = Learner.of(recipe, runtime, world, description, precision, batch_size)
        done = Done()
        if found is not None:
            found.read_into(learner.tensors(), world)
            learner.set_loss_scaling(state.get("loss_scaling"))
            done = Done(**state["done"])
            logger.info("going on from %s", found.uri)
        fixed = {
            "identity": identity,
            "recipe": recipe.model_dump(mode="json"),
            "manifest_digest": manifest.digest,
            "model": description,
            "tokenizer": tokenizer.to_json(),
            "rows": len(batches.manifest),
            "batch_size": batch_size,
            "precision": precision,
            "device": world.device.type,
            "device_name": name_of(world.device),
            "ranks": world.ranks,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
            "vocab_size": tokenizer.vocab_size,
        }
        done.run_id = tracker.start_run(labels.experiment, labels.name, labels.tags, tracked(fixed), done.run_id)
        tracker.log_dataset(manifest.source_uri, "manifest", manifest.digest, "training")
        status: RunStatus = "FAILED"
        try:
            resumed_at = done.step
            with CheckpointWriter(folder, world, lease) as writer:
                live = LiveMetrics.of(description, world.device, world.ranks)
                run = _Run(recipe, runtime, world, batches, learner, fixed, writer, live, tracker, on_progress)
                last = run.until_done(done, stop)
            status = "FINISHED" if last.step == recipe.steps else "KILLED"
        finally:
            tracker.finish(status)
    if stop.signal is not None and not world.launched:
        signal.raise_signal(stop.signal)
    if last.step < recipe.steps:
        raise TrainingInterrupted(f"stopped by a signal after step {last.step}; {last.uri} is saved")
    return report_of(last, last.state(), resumed_at)


def _batches(
    recipe: Recipe, manifest: ManifestTable, runtime: Runtime, world: World, kept: Mapping[str, Any] | None
) -> Batches:
    """The first rank of a machine decodes the pictures or copies their tars, the others then find them.

    A training that goes on takes the tokenizer that was kept with its checkpoint.
    """
    manifest = rows_for(recipe, manifest)
    pictures = pictures_for(recipe, manifest, runtime, world.ranks) if world.first_of_machine else None
    world.gathered(None)
    pictures = pictures or pictures_for(recipe, manifest, runtime, world.ranks)
    tokenizer = tokenizer_from_json(dict(kept)) if kept else tokenizer_for(recipe, manifest, runtime.t5_tokenizer)
    return Batches.of(manifest, pictures, tokenizer, recipe, world.rank, world.ranks)


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    runtime: Runtime
    world: World
    batches: Batches
    learner: Learner
    fixed: Mapping[str, Any]
    writer: CheckpointWriter
    live: LiveMetrics
    tracker: Tracker
    on_progress: Progress | None
    seen: Seen = field(default_factory=Seen)

    def until_done(self, done: Done, stop: StopSignal) -> Checkpoint:
        """Steps until the last or until a rank is asked to stop; the checkpoint saved then."""
        from tqdm import tqdm

        before = logged_at = time.perf_counter()
        logged_samples, waited_s = done.samples, 0.0
        ahead = Prefetched(self.batches, done.step, self.recipe.steps)
        with ahead, tqdm(total=self.recipe.steps, initial=done.step, desc="train", unit="step",
                         disable=not (self.runtime.progress_bar and self.world.leads)) as bar:  # fmt: skip
            for batch in ahead:
                measured, stopped = self.step(batch, stop)
                done.add(self.batches.plan.batch_size, measured["loss"])
                self.seen.add(batch)
                bar.update()
                last = done.step == self.recipe.steps or stopped
                now = time.perf_counter()
                done.seconds, before = done.seconds + now - before, now
                if done.step % self.runtime.log_every_steps == 0 or done.step == self.recipe.steps:
                    interval_s = max(now - logged_at, 1e-9)
                    pace = self.live.interval(done.samples - logged_samples, interval_s, ahead.waited_s - waited_s)
                    self.log(done, {**measured, **pace, "epoch": float(batch.epoch)})
                    bar.set_postfix(loss=f"{done.history[-1]['loss']:.3f}", img_s=f"{pace['samples_per_s']:.0f}")
                    logged_at, logged_samples, waited_s = now, done.samples, ahead.waited_s
                if last or self._checkpoint_due(done):
                    self.save(done)
                if last:
                    saved = self.writer.finish()
                    assert saved is not None
                    return saved
        raise AssertionError("unreachable: the last step returns")

    def step(self, batch: Batch, stop: StopSignal) -> tuple[dict[str, float], bool]:
        """One optimizer step: loss, learning rate, gradient norm and temperature of all ranks, and whether any is to stop."""
        measured = self.learner.gradient(batch, learning_rate_at(self.recipe, batch.step))
        loss, asked = self.world.summed([measured["loss"], 0.0 if stop.signal is None else 1.0])
        measured["loss"] = loss / self.world.ranks
        refuse_no_number(batch.step + 1, measured)
        self.learner.update()
        return measured, asked > 0

    def log(self, done: Done, measured: Mapping[str, float]) -> None:
        """The loss is the mean over the interval, the rest is of its last step."""
        loss = sum(done.interval_losses) / len(done.interval_losses)
        metrics = {**measured, "loss": loss}
        done.interval_losses = []
        self.seen.count(done, self.world)
        if done.unreadable:
            metrics["unreadable"] = float(done.unreadable)
        done.history.append({"step": done.step, **metrics})
        if self.world.leads:
            self.tracker.log_metrics(metrics, done.step)
            if self.on_progress is not None:
                self.on_progress(done.step, metrics)
        refuse_divergence(self.recipe, self.batches.plan.batch_size, done.history)

    def _checkpoint_due(self, done: Done) -> bool:
        every = self.runtime.checkpoint_every_steps
        if every <= 0 or done.step % every:
            return False
        return not done.history or not is_suspect(self.recipe, self.batches.plan.batch_size, done.history[-1])

    def save(self, done: Done) -> None:
        self.seen.count(done, self.world)
        done.run_id = self.tracker.run_id or done.run_id
        state = {**self.fixed, "done": asdict(done), "loss_scaling": self.learner.loss_scaling()}
        self.writer.begin(done.step, self.learner, state)


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Of step `step`, from 0: linear warm-up, then a cosine down to 0 (open_clip's `cosine_lr`)."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    along = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * along)) * recipe.learning_rate
