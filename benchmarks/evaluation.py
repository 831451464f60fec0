"""Our evaluation beside CLIP_benchmark's own code: the same open_clip model, WebDataset, batch and threads, on the CPU.

    python benchmarks/evaluation.py wall       seconds of an evaluation, ours over theirs at its best of several loaders' workers
    python benchmarks/evaluation.py cached     seconds of a second one (other templates, other intervals), ours over theirs
    python benchmarks/evaluation.py memory     ranks and intervals of 5,000 pictures and 25,000 captions: peak, and against 5,000
    python benchmarks/evaluation.py workers    pictures/s of two workers of a core each, as a share of twice one's

Every arm is a fresh process; arms take turns, and who begins a pair alternates. Ratios are medians of pairs. Imports are not timed,
all else is: opening the set, loading the model, embedding, metrics, and on our side storage and 2,000 draws for the intervals.
"""
# ruff: noqa: T201

import argparse
import importlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arms import add_arguments, measured

sys.path.append(str(Path(__file__).parents[1]))  # the sets of the tests

KINDS = ("retrieval", "classification")
METRICS = "clip_benchmark.metrics.zeroshot_"
SIZE = (400, 300)
"""Pixels of the made-up pictures."""
MODEL = {
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
BATCH = 64
LOADERS = (0, 1, 2)
"""Processes that read for CLIP_benchmark."""
TEXTS_EACH = (1, 5)
"""Captions a picture of the two sizes of `memory`."""
RANKED_PICTURES, WIDTH = 5_000, 512
WORKERS_SHARD = 64


# ---------------------------------------------------------------- arms: each runs in a process of its own


def arm_ours(options: Mapping[str, Any]) -> dict[str, float]:
    """`again`: with other templates and other intervals than before."""
    from dataclasses import replace

    import open_clip  # noqa: F401
    import torch

    from tests.clip_benchmark_sets import read_set
    from veclip_core.evaluation.evaluate import EvaluationConfig
    from veclip_core.networks import network_config
    from veclip_core.pipeline.scoring import Candidate, score
    from veclip_core.settings import Settings

    torch.set_num_threads(options["threads"])
    started = time.perf_counter()
    evaluation_set, config = read_set(Path(options["set"])), EvaluationConfig()
    if options.get("again"):
        config = EvaluationConfig(bootstrap_seed=1)
        told = {name: replace(one, templates=("a painting of a {}",)) for name, one in evaluation_set.labels.items()}
        evaluation_set = replace(evaluation_set, labels=told)
    settings = Settings(root=options["root"], threads=options["threads"])
    candidate = Candidate("ours", network_config(options["model"], settings.root))
    score(settings, [candidate], [evaluation_set], config)
    return {"seconds": time.perf_counter() - started}


def arm_theirs(options: Mapping[str, Any]) -> dict[str, float]:
    import torch

    from tests.clip_benchmark_sets import clip_benchmark as evaluated

    for name in ("open_clip", "webdataset", "clip_benchmark.datasets.builder", *(f"{METRICS}{kind}" for kind in KINDS)):
        importlib.import_module(name)
    torch.set_num_threads(options["threads"])
    started = time.perf_counter()
    folder = Path(options["set"])
    evaluated(options["model"], folder, retrieval=folder.name == "retrieval", batch=BATCH, workers=options["workers"])
    return {"seconds": time.perf_counter() - started}


def arm_ranks(options: Mapping[str, Any]) -> dict[str, float]:
    """Metrics and intervals from embeddings at hand."""
    import numpy as np

    from veclip_core.evaluation.evaluate import Embeddings, scored
    from veclip_core.evaluation.sets import ragged_set

    count, each = options["pictures"], options["each"]
    files, captions = (
        [Path(f"{n}.jpg") for n in range(count)],
        [[f"{n} {m}" for m in range(each)] for n in range(count)],
    )
    evaluation_set = ragged_set("ranked", files, captions, content="made up")
    random = np.random.default_rng(0)

    def unit_rows(rows: int) -> np.ndarray:
        found = random.standard_normal((rows, WIDTH), dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    embeddings = Embeddings(unit_rows(count), unit_rows(count * each), {})
    started = time.perf_counter()
    scored(embeddings, "any", evaluation_set, seed=0, model="any")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def arm_workers(options: Mapping[str, Any]) -> dict[str, float]:
    """Pictures and captions a second from the first shard's start to the last one's end: workers load before."""
    workers = options["workers"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])

    from tests.clip_benchmark_sets import read_set
    from veclip_core import storage
    from veclip_core.evaluation import index
    from veclip_core.networks import network_config
    from veclip_core.pipeline.scoring import Candidate, score
    from veclip_core.settings import Settings

    index.PICTURES_A_SHARD = WORKERS_SHARD
    with tempfile.TemporaryDirectory() as root:
        settings = Settings(root=root, threads=1, caption_workers=workers)
        score(settings, [Candidate("ours", network_config(options["model"], root))], [read_set(Path(options["set"]))])
        paths = list(Path(root, index.FOLDER).glob("*/embed/*/*/*.success.json"))
        ends = {path: path.stat().st_mtime for path in paths}
        markers = {path: storage.read_json(str(path)) for path in paths}
    begun = min(ends[path] - markers[path]["seconds"] for path in paths)
    rows = sum(marker["rows_ok"] for marker in markers.values())
    return {"rows_per_s": rows / (max(ends.values()) - begun)}


ARMS = {"ours": arm_ours, "theirs": arm_theirs, "ranks": arm_ranks, "workers": arm_workers}


# ---------------------------------------------------------------- comparisons


def against_theirs(options: argparse.Namespace, common: Mapping[str, Any], again: bool) -> dict[str, float]:
    """Our seconds over theirs, the median of pairs, by kind of set. `again`: of a second evaluation."""
    found = {}
    for kind in KINDS:
        given = {**common, "set": f"{common['folder']}/{kind}"}
        loaders = {n: measured(__file__, "theirs", **given, workers=n)["seconds"] for n in LOADERS}
        best = min(loaders, key=lambda n: loaders[n])
        print(f"  theirs, {kind}, seconds by the loader's workers: {loaders}")
        ratios = []
        for pair in range(options.pairs):
            seconds = {}
            with tempfile.TemporaryDirectory() as root:
                if again:
                    measured(__file__, "ours", **given, root=root)
                arms = {"ours": {"root": root, "again": again}, "theirs": {"workers": best}}
                for arm in sorted(arms, reverse=pair % 2 == 1):
                    seconds[arm] = measured(__file__, arm, **given, **arms[arm])["seconds"]
            ratios.append(round(seconds["ours"] / seconds["theirs"], 3))
            print(f"  {kind}, pair {pair + 1}: {seconds['ours']:.1f} against {seconds['theirs']:.1f} s, {ratios[-1]}")
        found[kind] = statistics.median(ratios)
    return found


def compare_wall(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{kind}_against_clip_benchmark": ratio for kind, ratio in against_theirs(options, common, False).items()}


def compare_cached(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    return {f"second_{kind}": ratio for kind, ratio in against_theirs(options, common, True).items()}


def compare_memory(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    pictures = options.count or RANKED_PICTURES
    runs: dict[int, list[dict[str, float]]] = {each: [] for each in TEXTS_EACH}
    for _ in range(options.pairs):
        for each in TEXTS_EACH:
            runs[each].append(measured(__file__, "ranks", pictures=pictures, each=each))
            print(f"  {pictures * each:,} captions: {runs[each][-1]}")
    few, many = (statistics.median(run["seconds"] for run in runs[each]) for each in TEXTS_EACH)
    peak_mb = max(run["peak_mb"] for run in runs[TEXTS_EACH[-1]])
    return {"seconds": many, "peak_mb": round(peak_mb), "growth": round(many / few, 2)}


def compare_workers(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    ratios = []
    for pair in range(options.pairs):
        rates = {}
        for workers in (1, 2) if pair % 2 == 0 else (2, 1):
            told = {"model": common["model"], "set": f"{common['folder']}/retrieval", "workers": workers}
            rates[workers] = measured(__file__, "workers", **told)["rows_per_s"]
        ratios.append(round(rates[2] / (2 * rates[1]), 3))
        print(f"  pair {pair + 1}: {rates[2]:.1f} against {rates[1]:.1f} rows/s, {ratios[-1]} of ideal")
    return {"workers_of_ideal": statistics.median(ratios)}


COMPARISONS = {"wall": compare_wall, "cached": compare_cached, "memory": compare_memory, "workers": compare_workers}
COUNTS = {"retrieval": 768, "classification": 3_072}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", nargs="?", choices=list(COMPARISONS))
    parser.add_argument("--count", type=int, help=f"pictures; by default {COUNTS}, and {RANKED_PICTURES} for memory")
    parser.add_argument("--threads", type=int, default=2, help="that compute, on both sides")
    parser.add_argument("--pairs", type=int, default=3)
    add_arguments(parser, ARMS)
    options = parser.parse_args()
    if options.arm:
        result: dict[str, Any] = ARMS[options.arm](options.options)
    elif options.comparison is None:
        parser.error(f"say what to compare: {', '.join(COMPARISONS)}")
    else:
        from tests.clip_benchmark_sets import write_set
        from tests.unit.clip_models import write_open_clip

        with tempfile.TemporaryDirectory() as folder:
            common = {"folder": folder, "threads": options.threads}
            if options.comparison != "memory":
                common["model"] = str(write_open_clip(Path(folder) / "model", **MODEL))
                for kind in KINDS:
                    count = options.count or COUNTS[kind]
                    write_set(Path(folder) / kind, count, retrieval=kind == "retrieval", size=SIZE)
            result = COMPARISONS[options.comparison](options, common)
        print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
