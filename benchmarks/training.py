"""Training beside open_clip's own trainer: the same model, data, batch and precision, on the CPU.

    python benchmarks/training.py trainer    samples/s of both loops, open_clip's at the best of a sweep of threads and workers
    python benchmarks/training.py loader     samples/s of both loaders alone on the same tars, and what drawing a caption costs
    python benchmarks/training.py gains      what bf16 and torch.compile bring here

Every arm is a fresh process; arms take turns, and who begins a pair alternates. Ratios are medians of pairs, with the lower end of
a one-sided 95 % interval (bootstrap). Pictures are decoded at every use by both, and of a training the second epoch is timed.
"""
# ruff: noqa: T201

import argparse
import hashlib
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arms import add_arguments, measured

if TYPE_CHECKING:
    from veclip_core.training.manifest_table import ManifestTable
    from veclip_core.training.recipe import Recipe

SHARDS = 4
SIZE = (400, 300)
"""Pixels of the made-up pictures."""
THREADS = WORKERS = (1, 2)
"""Of open_clip: those that compute, and processes that read."""
DRAWS = 100_000


def write_tars(folder: Path, count: int) -> None:
    """WebDataset tars with `jpg` and `txt`, and the manifest that names their members."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from veclip_core.samples import MIX_SCHEMA

    random = np.random.default_rng(0)
    (folder / "download").mkdir(parents=True)
    (folder / "mix").mkdir()
    for shard in range(SHARDS):
        name, rows = f"download/{shard:05d}.tar", []
        with tarfile.open(folder / name, "w") as tar:
            for number in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                jpeg = io.BytesIO()
                small.resize(SIZE, Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
                key = hashlib.sha256(f"{number}".encode()).hexdigest()[:32]
                alt = f"Picture {number} of a house by the sea, photographed in summer"
                for suffix, content in (("jpg", jpeg.getvalue()), ("txt", alt.encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                rows.append({"sample_id": key, "url_id": key, "alt": alt})
        with tarfile.open(folder / name) as tar:
            members = {member.name: member for member in tar.getmembers()}
        for row in rows:
            member = members[f"{row['url_id']}.jpg"]
            row |= {"tar": name, "offset": member.offset_data, "bytes": member.size}
            row |= {"vec": "a white house near blue water", "vecap": row["alt"], "vecap_status": "fused"}
        pq.write_table(pa.Table.from_pylist(rows, MIX_SCHEMA), folder / "mix" / f"{shard:05d}.parquet")


def recipe_of(options: Mapping[str, Any]) -> "Recipe":
    """The sample's model on CLIP's whole vocabulary, which open_clip's tokenizer has; two epochs."""
    from veclip_core.training.recipe import SAMPLE

    steps = 2 * (options["count"] // options["batch"])
    changed = {
        "tokenizer": "bpe",
        "fit": "crop",
        "flip": False,
        "batch_size": options["batch"],
        "steps": steps,
        "warmup_steps": 2,
    }
    return SAMPLE.model_copy(update={**changed, "precision": options.get("precision", "fp32")})


def manifest_in(folder: str) -> "ManifestTable":
    from veclip_core.training.manifest_table import load_manifest

    return load_manifest(folder, sorted(f"mix/{path.name}" for path in Path(folder, "mix").iterdir()))


# ---------------------------------------------------------------- arms: each runs in a process of its own


def arm_our_training(options: Mapping[str, Any]) -> dict[str, float]:
    from veclip_core.training.loop import train
    from veclip_core.training.report import Runtime

    recipe = recipe_of(options)
    runtime = Runtime(
        threads=options["threads"], device="cpu", progress_bar=False, checkpoint_every_steps=0, log_every_steps=recipe.steps // 2,
        **options.get("how", {}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        report = train(recipe, manifest_in(options["folder"]), out, runtime=runtime)
    return {"samples_per_s": report.history[-1]["samples_per_s"]}


def arm_their_training(options: Mapping[str, Any]) -> dict[str, float]:
    """open_clip_train's own `main`; its epochs are timed from outside."""
    import torch
    from open_clip_train import main as trainer

    torch.set_num_threads(options["threads"])
    recipe = recipe_of(options)
    seconds = []
    one_epoch = trainer.train_one_epoch

    def timed(*arguments: Any, **more: Any) -> Any:
        started = time.perf_counter()
        done = one_epoch(*arguments, **more)
        seconds.append(time.perf_counter() - started)
        return done

    trainer.train_one_epoch = timed
    with tempfile.TemporaryDirectory() as out:
        name = register_model(recipe, Path(out))
        trainer.main(
            [
                *("--model", name, "--train-data", tars_in(options["folder"]), "--dataset-type", "webdataset"),
                *("--train-num-samples", str(options["count"]), "--batch-size", str(options["batch"]), "--epochs", "2"),
                *("--workers", str(options["workers"]), "--precision", "fp32", "--lr", str(recipe.learning_rate)),
                *("--warmup", "2", "--wd", str(recipe.weight_decay), "--grad-clip-norm", "1.0", "--device", "cpu"),
                *("--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8", "--logs", out, "--save-frequency", "0"),
                *("--log-every-n-steps", "1000000"),
            ]
        )
    return {"samples_per_s": options["count"] / seconds[-1]}


def arm_our_loader(options: Mapping[str, Any]) -> dict[str, float]:
    from veclip_core.training.data import Batches, pictures_for, tokenizer_for
    from veclip_core.training.report import Runtime

    recipe, manifest = recipe_of(options), manifest_in(options["folder"])
    pictures = pictures_for(recipe, manifest, Runtime(cache_folder=None))
    batches = Batches.of(manifest, pictures, tokenizer_for(recipe, manifest), recipe)
    batches.at(0)
    started = time.perf_counter()
    for step in range(recipe.steps):
        batches.at(step)
    return {"samples_per_s": recipe.steps * recipe.batch_size / (time.perf_counter() - started)}


def arm_their_loader(options: Mapping[str, Any]) -> dict[str, float]:
    from open_clip import create_model_and_transforms, get_tokenizer
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    recipe = recipe_of(options)
    with tempfile.TemporaryDirectory() as out:
        name = register_model(recipe, Path(out))
        _, preprocess, _ = create_model_and_transforms(name)
        told = parse_args(
            [
                *("--model", name, "--train-data", tars_in(options["folder"]), "--workers", str(options["workers"])),
                *("--train-num-samples", str(options["count"]), "--batch-size", str(options["batch"])),
            ]
        )
        told.world_size = 1
        loader = get_wds_dataset(told, preprocess, is_train=True, tokenizer=get_tokenizer(name)).dataloader
        for _ in loader:  # its workers start, and stay
            pass
        started = time.perf_counter()
        samples = sum(len(texts) for _ in range(2) for _, texts in loader)
        return {"samples_per_s": samples / (time.perf_counter() - started)}


def arm_choice(options: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds a sample of drawing one of AltText and VeCap, rows at hand."""
    from veclip_core.mixing.choose import caption_of
    from veclip_core.training.recipe import MIXED

    manifest = manifest_in(options["folder"])
    rows = manifest.rows(list(range(len(manifest))))
    started = time.perf_counter()
    for draw in range(DRAWS):
        caption_of(rows[draw % len(rows)], 0, draw // len(rows), MIXED)
    return {"microseconds": 1e6 * (time.perf_counter() - started) / DRAWS}


def register_model(recipe: "Recipe", folder: Path) -> str:
    """The recipe's model under a name that open_clip knows."""
    import open_clip

    from veclip_core.training.model import architecture
    from veclip_core.training.texts import BpeTokenizer

    description = architecture(recipe, BpeTokenizer(recipe.context_length).vocab_size)
    (folder / "configs").mkdir()
    (folder / "configs" / "same-model.json").write_text(json.dumps(description))
    open_clip.add_model_config(folder / "configs")
    return "same-model"


def tars_in(folder: str) -> str:
    return f"{folder}/download/{{00000..{SHARDS - 1:05d}}}.tar"


ARMS = {
    "our_training": arm_our_training,
    "their_training": arm_their_training,
    "our_loader": arm_our_loader,
    "their_loader": arm_their_loader,
    "choice": arm_choice,
}


# ---------------------------------------------------------------- comparisons


def swept(arm: str, common: Mapping[str, Any], threads: Sequence[int]) -> tuple[dict[str, float], dict[str, int]]:
    """Samples a second by setting, and the best setting."""
    rates = {
        (computing, workers): measured(__file__, arm, **common, threads=computing, workers=workers)["samples_per_s"]
        for computing in threads
        for workers in WORKERS
    }
    best = max(rates, key=lambda setting: rates[setting])
    shown = {f"{computing} threads, {workers} workers": round(rate, 1) for (computing, workers), rate in rates.items()}
    print(f"  {arm}: {shown}")
    return shown, {"threads": best[0], "workers": best[1]}


def paired(ours: tuple[str, Mapping[str, Any]], theirs: tuple[str, Mapping[str, Any]], pairs: int) -> list[float]:
    """Our rate over theirs, pair by pair."""
    ratios = []
    for pair in range(pairs):
        rates = {}
        for side, (arm, options) in ((0, ours), (1, theirs)) if pair % 2 == 0 else ((1, theirs), (0, ours)):
            rates[side] = measured(__file__, arm, **options)["samples_per_s"]
        ratios.append(round(rates[0] / rates[1], 3))
        print(f"  pair {pair + 1}: {rates[0]:.1f} against {rates[1]:.1f} samples/s, ratio {ratios[-1]}")
    return ratios


def lower_bound(ratios: Sequence[float]) -> float:
    """Of the median: the lower end of a one-sided 95 % bootstrap interval."""
    import numpy as np
    from scipy.stats import bootstrap

    if len(ratios) < 2:
        return ratios[0]
    found = bootstrap((ratios,), np.median, confidence_level=0.9, method="percentile", rng=np.random.default_rng(0))
    return round(float(found.confidence_interval.low), 3)


def compare_trainer(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    sweep, best = swept("their_training", common, THREADS)
    ours = ("our_training", {**common, "threads": options.threads})
    ratios = paired(ours, ("their_training", {**common, **best}), options.pairs)
    return {
        "sweep": sweep,
        "best": best,
        "ratios": ratios,
        "trainer_against_open_clip": statistics.median(ratios),
        "trainer_against_open_clip_low": lower_bound(ratios),
    }


def compare_loader(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    sweep, best = swept("their_loader", common, [1])
    ratios = paired(("our_loader", common), ("their_loader", {**common, **best}), options.pairs)
    return {
        "sweep": sweep,
        "best": best,
        "ratios": ratios,
        "loader_against_open_clip": statistics.median(ratios),
        "loader_against_open_clip_low": lower_bound(ratios),
        "choice_microseconds": round(measured(__file__, "choice", **common)["microseconds"], 2),
    }


def compare_gains(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    plain = ("our_training", {**common, "threads": options.threads})
    ways = {"bf16": {"precision": "bf16"}, "compile": {"how": {"compile": True}}}
    found = {name: paired(("our_training", {**plain[1], **way}), plain, options.pairs) for name, way in ways.items()}
    return {f"{name}_gain": statistics.median(ratios) for name, ratios in found.items()}


COMPARISONS = {"trainer": compare_trainer, "loader": compare_loader, "gains": compare_gains}


def main(arms: Mapping[str, Any], comparisons: Mapping[str, Any], about: str | None, count: int, pairs: int) -> None:
    """A comparison on tars of made-up pictures, or one of its arms. `count` and `pairs` are defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", nargs="?", choices=list(comparisons))
    parser.add_argument("--count", type=int, default=count, help="pictures")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2, help="of our training in a single process")
    parser.add_argument("--pairs", type=int, default=pairs)
    add_arguments(parser, arms)
    options = parser.parse_args()
    if options.arm:
        result: dict[str, Any] = arms[options.arm](options.options)
    elif options.comparison is None:
        parser.error(f"say what to compare: {', '.join(comparisons)}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_tars(Path(folder) / "world", options.count)
            common = {"folder": str(Path(folder) / "world"), "count": options.count, "batch": options.batch}
            result = comparisons[options.comparison](options, common)
        print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(ARMS, COMPARISONS, __doc__, count=4_096, pairs=7)
