"""The training loop: open_clip's model and loss, batches by step, a checkpoint that resumes exactly.

Killed at any moment and started again, the same command ends at the same weights, bit for bit, on the same machine with the
same number of threads. SIGTERM and SIGINT save a checkpoint first, and are then delivered to whoever handled them before.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.leases import Lease
from veclip_core.mendable import Mendable
from veclip_core.tracking import NoTracker, RunStatus, Tracker
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.checkpoint import Checkpoint
from veclip_core.training.data import Batch, Batches, pictures_for, tokenizer_for
from veclip_core.training.manifest_table import ManifestTable
from veclip_core.training.model import architecture, build_model, encode_texts, normalised, precision_of
from veclip_core.training.process import StopSignal, attention_for, repeatable
from veclip_core.training.recipe import Recipe
from veclip_core.training.report import Done, RunLabels, Runtime, TrainReport, report_of

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)

Progress = Callable[[int, Mapping[str, float]], None]


class TrainingDiverged(Mendable):
    """The loss or the gradient is no number any more; the last checkpoint is from before."""


class TrainingInterrupted(RuntimeError):
    """A signal asked to stop, a checkpoint was saved, and the signal's own handler let the process live."""


def training_identity(recipe: Recipe, manifest: ManifestTable) -> str:
    """Decides a training's folder: equal when recipe and manifest are."""
    return digest_of({"recipe": recipe.identity(), "manifest": manifest.digest})


def train(
    recipe: Recipe,
    manifest: ManifestTable,
    out_dir: str | Path,
    *,
    runtime: Runtime | None = None,
    tracker: Tracker | None = None,
    labels: RunLabels | None = None,
    on_progress: Progress | None = None,
) -> TrainReport:
    """Train, or go on from the last checkpoint in `out_dir`, or report at once where the last step is done.

    A second process that wants the same training waits for the first, and then reports what that one made.

    Args:
        out_dir: folder or URL of this training alone.
        on_progress: called with the step and its metrics at every logged step.

    Raises:
        TrainingDiverged: with step, loss, gradient norm and temperature.
        ValueError: when `out_dir` holds another training.
    """
    runtime, tracker, labels = runtime or Runtime(), tracker or NoTracker(), labels or RunLabels()
    folder = str(out_dir)
    storage.remove_dead_scratch(folder)
    with Lease.wait_for(storage.join(folder, "leases"), "training") as lease:
        return _train(recipe, manifest, folder, runtime, tracker, labels, on_progress, lease)


def _train(
    recipe: Recipe,
    manifest: ManifestTable,
    folder: str,
    runtime: Runtime,
    tracker: Tracker,
    labels: RunLabels,
    on_progress: Progress | None,
    lease: Lease,
) -> TrainReport:
    import torch

    identity = training_identity(recipe, manifest)
    found = checkpoints.latest(folder)
    if found is not None and (held := found.state()["identity"]) != identity:
        raise ValueError(
            f"{folder} holds another training ({held[:12]}, this one is {identity[:12]}): the recipe or the manifest changed. "
            "Name another folder, or delete this one."
        )
    if found is not None and found.step >= recipe.steps:
        logger.info("%s is done already", found.uri)
        return report_of(found, found.state(), resumed_at=found.step)

    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if runtime.device == "auto" else runtime.device
    )
    pictures = pictures_for(recipe, manifest, runtime)
    tokenizer = tokenizer_for(recipe, manifest)
    batches = Batches.of(manifest, pictures, tokenizer, recipe)
    description = architecture(recipe, tokenizer.vocab_size)
    with repeatable(runtime.threads), StopSignal() as stop:
        # Channels last: a CPU convolves a batch of the sample's pictures in two thirds of the time.
        model = build_model(description, recipe.seed).to(device, memory_format=torch.channels_last)
        optimizer = _optimizer(model, recipe)
        done = Done()
        if found is not None:
            done = _resume(found, model, optimizer)
        fixed = {
            "identity": identity,
            "recipe": recipe.model_dump(mode="json"),
            "manifest_digest": manifest.digest,
            "model": description,
            "tokenizer": tokenizer.to_json(),
            "batch_size": batches.plan.batch_size,
            "precision": precision_of(recipe, device),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "vocab_size": tokenizer.vocab_size,
        }
        params = {**fixed["recipe"], **{name: fixed[name] for name in _TRACKED}}
        done.run_id = tracker.start_run(labels.experiment, labels.name, labels.tags, params, done.run_id)
        tracker.log_dataset(manifest.source_uri, "manifest", manifest.digest, "training")
        run = _Run(recipe, runtime, batches, model, optimizer, device, fixed, folder, tracker, on_progress, lease)
        status: RunStatus = "FAILED"
        try:
            resumed_at = done.step
            last = run.until_done(done, stop)
            status = "FINISHED" if last.step == recipe.steps else "KILLED"
        finally:
            tracker.finish(status)
    if stop.signal is not None:
        signal.raise_signal(stop.signal)
        raise TrainingInterrupted(f"stopped by signal {stop.signal} after step {last.step}; {last.uri} is saved")
    return report_of(last, last.state(), resumed_at)


_TRACKED = ("identity", "manifest_digest", "batch_size", "precision", "device", "threads", "parameters", "vocab_size")


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    runtime: Runtime
    batches: Batches
    model: Any
    optimizer: "torch.optim.Optimizer"
    device: "torch.device"
    fixed: Mapping[str, Any]
    folder: str
    tracker: Tracker
    on_progress: Progress | None
    lease: Lease

    def until_done(self, done: Done, stop: StopSignal) -> Checkpoint:
        """Steps until the last or until asked to stop; the checkpoint saved then."""
        from tqdm import tqdm

        before = logged_at = time.perf_counter()
        logged_samples = done.samples
        with tqdm(total=self.recipe.steps, initial=done.step, desc="train", unit="step",
                  disable=not self.runtime.progress_bar) as bar:  # fmt: skip
            for batch in _prefetched(self.batches, done.step, self.recipe.steps):
                measured = self.step(batch)
                done.add(batch, measured["loss"])
                bar.update()
                last = done.step == self.recipe.steps or stop.signal is not None
                now = time.perf_counter()
                done.seconds, before = done.seconds + now - before, now
                if done.step % self.runtime.log_every_steps == 0 or done.step == self.recipe.steps:
                    rate = (done.samples - logged_samples) / max(now - logged_at, 1e-9)
                    self.log(done, {**measured, "samples_per_s": rate, "epoch": float(batch.epoch)})
                    bar.set_postfix(loss=f"{done.history[-1]['loss']:.3f}", img_s=f"{rate:.0f}")
                    logged_at, logged_samples = now, done.samples
                if last or self._checkpoint_due(done.step):
                    saved = self.save(done)
                if last:
                    return saved
        raise AssertionError("unreachable: the last step returns")

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; loss, learning rate, gradient norm and temperature."""
        import torch
        from open_clip.loss import ClipLoss

        model = self.model
        rate = learning_rate_at(self.recipe, batch.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        model.train()
        images_BCHW = normalised(batch.images_BCHW.to(self.device, non_blocking=True))
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        bf16 = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.fixed["precision"] == "bf16")
        with bf16:
            images_BD = model.encode_image(images_BCHW, normalize=True)
            with attention_for(self.device):
                texts_BD = encode_texts(model, batch.tokens_BL, self.device)
        loss = ClipLoss()(images_BD.float(), texts_BD.float(), model.logit_scale.exp())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip_norm or math.inf)
        temperature = model.logit_scale.exp()
        measured = {
            "loss": loss.item(),
            "lr": rate,
            "grad_norm": norm.item(),
            "logit_scale": temperature.item(),
        }
        if not (math.isfinite(measured["loss"]) and math.isfinite(measured["grad_norm"])):
            raise TrainingDiverged(
                f"step {batch.step + 1}: loss {measured['loss']}, gradient norm {measured['grad_norm']}, logit scale "
                f"{measured['logit_scale']:.3g}, learning rate {rate:.3g}. Lower the learning rate or lengthen the warm-up."
            )
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return measured

    def log(self, done: Done, measured: Mapping[str, float]) -> None:
        """The loss is the mean over the interval, the rest is of its last step."""
        loss = sum(done.interval_losses) / len(done.interval_losses)
        metrics = {**measured, "loss": loss}
        done.interval_losses = []
        done.history.append({"step": done.step, **metrics})
        self.tracker.log_metrics(metrics, done.step)
        if self.on_progress is not None:
            self.on_progress(done.step, metrics)

    def _checkpoint_due(self, step: int) -> bool:
        return self.runtime.checkpoint_every_steps > 0 and step % self.runtime.checkpoint_every_steps == 0

    def save(self, done: Done) -> Checkpoint:
        self.lease.check()
        done.run_id = self.tracker.run_id or done.run_id
        return checkpoints.save(
            self.folder, done.step, self.model, self.optimizer, {**self.fixed, "done": asdict(done)}
        )


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Of step `step`, from 0: linear warm-up, then a cosine down to 0 (open_clip's `cosine_lr`)."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    along = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * along)) * recipe.learning_rate


def _optimizer(model: "torch.nn.Module", recipe: Recipe) -> "torch.optim.Optimizer":
    """AdamW; vectors and scalars (biases, norms, the temperature) do not decay."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.epsilon, fused=True)


def _resume(found: Checkpoint, model: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> Done:
    import torch

    model.load_state_dict(found.weights())
    training = found.training()
    optimizer.load_state_dict(training["optimizer"])
    torch.set_rng_state(training["rng"])
    logger.info("going on from %s", found.uri)
    return Done(**found.state()["done"])


def _prefetched(batches: Batches, first: int, end: int) -> Iterator[Batch]:
    """The batches of steps [first, end), each prepared while the one before it is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead = pool.submit(batches.at, first)
        for step in range(first, end):
            batch = ahead.result()
            if step + 1 < end:
                ahead = pool.submit(batches.at, step + 1)
            yield batch
