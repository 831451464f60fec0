"""What the captioning pipeline costs beside the engine alone, and how it behaves over many shards.

    python benchmarks/captioning.py fuse         the stage `fuse`, parquet to parquet, against vLLM alone at the best of a sweep
    python benchmarks/captioning.py describe     the stage `describe`, tar to parquet, against the same on decoded pictures
    python benchmarks/captioning.py transformers vLLM's stage against transformers' generate at its best batch size
    python benchmarks/captioning.py memory       resident memory after 5 and after 50 shards
    python benchmarks/captioning.py markers      seconds a shard, and to resume, as finished shards grow to 10,000
    python benchmarks/captioning.py ray          two Ray nodes against two workers of this machine

Every arm is a fresh process; what is timed begins when its engine is loaded and warm. Arms take turns, and who begins a pair
alternates; ratios are medians of pairs. The describing model is a LLaVA of random weights: a real model's path, not its speed.
"""
# ruff: noqa: T201

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from veclip_core.settings import CPU_COUNT, Settings

sys.path.append(str(Path(__file__).parents[1]))  # the tiny models and clusters of the tests

SWEEP: list[dict[str, Any]] = [
    {},
    {"max_num_seqs": 64},
    {"max_num_seqs": 256},
    {"block_size": 128},
    {"enable_prefix_caching": False},
    {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}},
]
"""vLLM's options beside those in common (`_bare_options`)."""
BATCHES = (8, 32, 64)
TITLES = (
    "Gala apple",
    "Traffic light at night",
    "Carte de France",
    "Antique lamp by John Smith",
    "dolphin",
    "Flat icon, part",
    "Zorro",
)
SEEN = (
    "a drawing of a red apple, food-fruit, red and green", "a drawing of a vertical traffic light, transport-ground, gray",
    "a drawing of a clapper board, light & video, gray and orange", "a drawing of a spouting whale, animal-marine, blue",
)  # fmt: skip


def pairs_of(rows: int, shard: int = 0) -> list[tuple[str, str]]:
    """Distinct pairs of AltText and VeC of the sample's kind."""
    numbers = range(shard * rows, shard * rows + rows)
    return [(f"{TITLES[n % len(TITLES)]} {n}", SEEN[n % len(SEEN)]) for n in numbers]


# ---------------------------------------------------------------- arms: each runs in a process of its own


def arm_stage_fuse(options: Mapping[str, Any]) -> dict[str, float]:
    """The stage, from parquet to parquet, a shard at a time."""
    from veclip_core.captioning.fuse import FuseConfig, FuseOperation

    operation = FuseOperation(FuseConfig(prompts=FuseConfig().prompts[:1]), runtime(options))
    with tempfile.TemporaryDirectory() as folder, operation.open() as work:
        work(shard_to_fuse(Path(folder) / "warm", 16, 1_000))
        tasks = [shard_to_fuse(Path(folder) / str(n), options["rows"], n) for n in range(options.get("shards", 1))]
        resident = []
        started = time.monotonic()
        for task in tasks:
            work(task)
            resident.append(resident_mb())
        return {
            "seconds": time.monotonic() - started,
            "resident_mb": resident[-1],
            "resident_5_mb": resident[min(4, len(resident) - 1)],
        }


def arm_bare_fuse(options: Mapping[str, Any]) -> dict[str, float]:
    """vLLM alone: the same tokens handed over in memory, once."""
    from vllm import LLM, SamplingParams

    from veclip_core.captioning.engines import chat
    from veclip_core.captioning.engines.base import Sampling
    from veclip_core.captioning.engines.weights import SMOLLM2, resolve_model
    from veclip_core.captioning.fuse import FuseConfig

    path = resolve_model(SMOLLM2, cache() / "weights")
    llm = LLM(model=path, **(_bare_options() | options["vllm"]))
    tokenizer = llm.get_tokenizer()
    prompt, specials = FuseConfig().prompts[0], chat.special_tokens(tokenizer)

    def tokens(pairs: Sequence[tuple[str, str]]) -> list[Any]:
        texts = [chat.render(prompt.request(*pair), tokenizer, specials) for pair in pairs]
        return [{"prompt_token_ids": chat.token_ids(text, tokenizer)} for text in texts]

    sampling = Sampling()
    params = SamplingParams(temperature=0, max_tokens=sampling.max_tokens, stop=list(sampling.stop))
    llm.generate(tokens(pairs_of(16, 1_000)), params, use_tqdm=False)
    ready = tokens(sorted(pairs_of(options["rows"])))
    started = time.monotonic()
    llm.generate(ready, params, use_tqdm=False)
    return {"seconds": time.monotonic() - started}


def arm_transformers_fuse(options: Mapping[str, Any]) -> dict[str, float]:
    """transformers' own generate on padded batches, prompts sorted by length; no prefix is shared."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from veclip_core.captioning.engines import chat
    from veclip_core.captioning.engines.weights import SMOLLM2, resolve_model
    from veclip_core.captioning.fuse import FuseConfig

    torch.set_num_threads(options["threads"])
    path = resolve_model(SMOLLM2, cache() / "weights")
    tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    prompt, specials = FuseConfig().prompts[0], chat.special_tokens(tokenizer)

    def run(pairs: Sequence[tuple[str, str]]) -> None:
        texts = sorted((chat.render(prompt.request(*pair), tokenizer, specials) for pair in pairs), key=len)
        for at in range(0, len(texts), options["batch"]):
            inputs = tokenizer(
                texts[at : at + options["batch"]], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                model.generate(**inputs, max_new_tokens=48, do_sample=False, stop_strings=["\n"], tokenizer=tokenizer)

    run(pairs_of(4, 1_000))
    started = time.monotonic()
    run(pairs_of(options["rows"]))
    return {"seconds": time.monotonic() - started}


def arm_stage_describe(options: Mapping[str, Any]) -> dict[str, float]:
    """The stage, from a tar of JPEGs to parquet."""
    from functools import partial

    from veclip_core.captioning.describe import DescribeConfig, DescribeOperation, open_vlm

    config = llava_config(options)
    operation = DescribeOperation(DescribeConfig(describer=config), partial(open_vlm, config, runtime(options)))
    with tempfile.TemporaryDirectory() as folder, operation.open() as work:
        work(shard_to_describe(Path(folder) / "warm", 8))
        task = shard_to_describe(Path(folder) / "all", options["rows"])
        started = time.monotonic()
        work(task)
        return {"seconds": time.monotonic() - started}


def arm_bare_describe(options: Mapping[str, Any]) -> dict[str, float]:
    """vLLM alone: the same prompts with decoded pictures in memory."""
    from vllm import LLM, SamplingParams

    config = llava_config(options)
    pictures = {"max_model_len": 512, "limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0}
    llm = LLM(model=options["llava"], **(_bare_options() | pictures | options["vllm"]))
    images = [decoded for decoded in decoded_pictures(options["rows"])]
    params = SamplingParams(temperature=0, max_tokens=config.sampling.max_tokens, stop=list(config.sampling.stop))
    prompt = f"user: <image>\n{config.prompt.text}\nassistant: "
    llm.generate(
        [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images[:8]], params, use_tqdm=False
    )
    started = time.monotonic()
    llm.generate([{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images], params, use_tqdm=False)
    return {"seconds": time.monotonic() - started}


def arm_stages_on(options: Mapping[str, Any]) -> dict[str, float]:
    """`run_stage` of fuse over many shards, on processes of this machine or on Ray; loading included."""
    from tests.ray_cluster import cluster_of
    from veclip_core.captioning.fuse import FuseConfig, FuseOperation
    from veclip_core.execution.local import LocalExecutor
    from veclip_core.execution.ray_cluster import RayExecutor
    from veclip_core.samples import Grid
    from veclip_core.stage import run_stage

    operation = FuseOperation(FuseConfig(prompts=FuseConfig().prompts[:1]), runtime(options))
    threads = {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        grid = Grid(1, options["shards"])
        inputs = inputs_to_fuse(Path(folder), options["rows"], range(options["shards"]))
        common: dict[str, Any] = {
            "root": folder, "source": "bench", "scale": "bench", "grid": grid, "parts": 1, "partial": False, "inputs": inputs,
        }  # fmt: skip
        if options["executor"] == "local":
            started = time.monotonic()
            run_stage(operation, executor=LocalExecutor(2, threads), **common)
            return {"seconds": time.monotonic() - started}
        with cluster_of(2) as cluster:
            started = time.monotonic()
            run_stage(operation, executor=RayExecutor(cluster.address, 2, environment=threads), **common)
            return {"seconds": time.monotonic() - started}


def arm_markers(options: Mapping[str, Any]) -> dict[str, float]:
    """A stage of tiny shards: seconds a shard, and seconds to find that all are done."""
    from tests.counting import Numbers, NumbersConfig
    from veclip_core.execution.local import LocalExecutor
    from veclip_core.samples import Grid
    from veclip_core.stage import run_stage

    shards = options["shards"]
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "root": folder, "source": "bench", "scale": "bench", "parts": max(1, shards // 100), "partial": False, "inputs": {},
            "grid": Grid(max(1, shards // 100), min(shards, 100)), "executor": LocalExecutor(1),
        }  # fmt: skip
        started = time.monotonic()
        run_stage(Numbers(NumbersConfig(rows=1)), **common)
        first = time.monotonic() - started
        started = time.monotonic()
        run_stage(Numbers(NumbersConfig(rows=1)), **common)
        return {"seconds": first, "resume_seconds": time.monotonic() - started}


ARMS = {
    "stage_fuse": arm_stage_fuse, "bare_fuse": arm_bare_fuse, "transformers_fuse": arm_transformers_fuse,
    "stage_describe": arm_stage_describe, "bare_describe": arm_bare_describe, "stages_on": arm_stages_on, "markers": arm_markers,
}  # fmt: skip


def _bare_options() -> dict[str, Any]:
    return {
        "dtype": "bfloat16", "max_model_len": 2048, "enforce_eager": True, "enable_chunked_prefill": False,
        "max_num_batched_tokens": 32_768, "max_num_seqs": 128, "block_size": 32, "disable_log_stats": True,
    }  # fmt: skip


def runtime(options: Mapping[str, Any]) -> Any:
    from veclip_core.captioning.engines.base import EngineRuntime

    return EngineRuntime(engine="vllm", weights_dir=cache() / "weights", threads=options.get("threads", CPU_COUNT))


def cache() -> Path:
    return Settings.from_environment().cache_folder


def resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def inputs_to_fuse(folder: Path, rows: int, shards: Sequence[int]) -> dict[str, Any]:
    """`list_urls`, `describe` and `check` as the stages before would have left them: one shard each of other pairs."""
    from veclip_core import storage
    from veclip_core.samples import CHECK_SCHEMA, DESCRIBE_SCHEMA, LIST_URLS_SCHEMA, ShardKey
    from veclip_core.shards import ShardSet

    sets = {name: ShardSet(str(folder), "bench", name, "0" * 16) for name in ("list_urls", "describe", "check")}
    for number, shard in enumerate(shards):
        key = ShardKey(0, number)
        listed, described, checked = [], [], []
        for row, (alt, vec) in enumerate(pairs_of(rows, shard)):
            ids = {"url_id": f"{shard:08d}{row:08d}", "sample_id": f"{shard:08d}{row:08d}"}
            listed.append({**ids, "url": "", "alt_text": alt, "source": "bench", "status": "ok"})
            described.append(
                {"url_id": ids["url_id"], "vec": vec, "status": "ok", "model": "bench", "prompt_id": "", "detail": "{}"}
            )
            checked.append(ids)
        for name, schema, table in (
            ("list_urls", LIST_URLS_SCHEMA, listed), ("describe", DESCRIBE_SCHEMA, described), ("check", CHECK_SCHEMA, checked),
        ):  # fmt: skip
            write_table(sets[name], key, pa.Table.from_pylist(table, schema=schema))
            storage.write_json(sets[name].file(key, "success.json"), {"sha256": f"{name}{shard}", "identity": "bench"})
    return sets


def write_table(shards: Any, key: Any, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    path = Path(shards.file(key, "parquet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def shard_to_fuse(folder: Path, rows: int, shard: int) -> Any:
    from veclip_core.samples import ShardKey
    from veclip_core.stage import ShardTask

    (folder / "out").mkdir(parents=True)
    return ShardTask(ShardKey(0, 0), inputs_to_fuse(folder, rows, [shard]), folder / "out")


def jpegs(rows: int) -> list[bytes]:
    """Smooth pictures of 256 pixels, as `download` leaves them."""
    import io

    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    made = []
    for pixels in random.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((256, 192), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        made.append(buffer.getvalue())
    return made


def decoded_pictures(rows: int) -> list[Any]:
    from veclip_core.captioning.describe import decode

    return [decode(data) for data in jpegs(rows)]


def shard_to_describe(folder: Path, rows: int) -> Any:
    import tarfile

    from veclip_core.download.seal import add_member
    from veclip_core.samples import DOWNLOAD_SCHEMA, ShardKey
    from veclip_core.shards import ShardSet
    from veclip_core.stage import ShardTask

    (folder / "out").mkdir(parents=True)
    shards, key = ShardSet(str(folder), "bench", "download", "0" * 16), ShardKey(0, 0)
    Path(shards.file(key, "tar")).parent.mkdir(parents=True)
    table = []
    with tarfile.open(shards.file(key, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(jpegs(rows)):
            offset = add_member(tar, f"{number:08d}.jpg", data)
            table.append({"url_id": f"{number:08d}", "status": "ok", "offset": offset, "bytes": len(data)})
    write_table(shards, key, pa.Table.from_pylist(table, schema=DOWNLOAD_SCHEMA))
    return ShardTask(key, {"download": shards}, folder / "out")


def llava_config(options: Mapping[str, Any]) -> Any:
    from veclip_core.captioning.describe import VlmConfig
    from veclip_core.captioning.engines.base import EngineConfig, Sampling

    return VlmConfig(engine=EngineConfig(model=options["llava"], max_model_len=512), sampling=Sampling(max_tokens=24))


# ---------------------------------------------------------------- the comparisons


def measured(arm: str, **options: Any) -> dict[str, float]:
    """One arm in a fresh process."""
    threads = str(options.get("threads", CPU_COUNT))
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, __file__, "--arm", arm, "--options", json.dumps(options), "--json", result.name]
        subprocess.run(
            command,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=None if "-v" in sys.argv else subprocess.DEVNULL,
        )
        return dict(json.loads(Path(result.name).read_text()))


def paired(first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]], pairs: int) -> list[float]:
    """Seconds of the second over seconds of the first, pair by pair."""
    ratios = []
    for number in range(pairs):
        order = (first, second) if number % 2 == 0 else (second, first)
        seconds = {id(arm): measured(arm[0], **arm[1])["seconds"] for arm in order}
        ratios.append(round(seconds[id(second)] / seconds[id(first)], 3))
        print(
            f"  pair {number + 1}: {seconds[id(first)]:.1f} s against {seconds[id(second)]:.1f} s, ratio {ratios[-1]}"
        )
    return ratios


def swept(arm: str, common: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """vLLM alone with each of the sweep's options: its rates, and the options of the best."""
    sweep = []
    for given in SWEEP:
        named = given or "the common options"
        try:
            rate = round(common["rows"] / measured(arm, **common, vllm=given)["seconds"], 2)
        except subprocess.CalledProcessError:
            print(f"  vLLM alone with {named}: does not run here")
            rate = 0.0
        else:
            print(f"  vLLM alone with {named}: {rate} rows/s")
        sweep.append({"options": given, "rows_per_s": rate})
    return sweep, max(sweep, key=lambda one: one["rows_per_s"])["options"]


def compare_fuse(options: argparse.Namespace) -> dict[str, Any]:
    common = {"rows": options.rows, "threads": options.threads}
    sweep, best = swept("bare_fuse", common)
    ratios = paired(("stage_fuse", common), ("bare_fuse", {**common, "vllm": best}), options.pairs)
    return {"sweep": sweep, "best": best, "ratios": ratios, "fuse_against_vllm": statistics.median(ratios)}


def compare_describe(options: argparse.Namespace) -> dict[str, Any]:
    from tests.tiny_llava import save_tiny_llava

    with tempfile.TemporaryDirectory() as folder:
        llava = str(save_tiny_llava(Path(folder) / "llava", cache() / "weights"))
        # The tiny model is fast: fewer would be over in two seconds.
        common = {"rows": 4 * options.rows, "llava": llava, "threads": options.threads}
        sweep, best = swept("bare_describe", common)
        ratios = paired(("stage_describe", common), ("bare_describe", {**common, "vllm": best}), options.pairs)
    return {"sweep": sweep, "best": best, "ratios": ratios, "describe_against_vllm": statistics.median(ratios)}


def compare_transformers(options: argparse.Namespace) -> dict[str, Any]:
    rows = min(options.rows, 64)
    sweep = {
        batch: rows / measured("transformers_fuse", rows=rows, batch=batch, threads=options.threads)["seconds"]
        for batch in BATCHES
    }
    print("  transformers:", {batch: round(rate, 2) for batch, rate in sweep.items()}, "rows/s by batch")
    best = max(sweep, key=lambda batch: sweep[batch])
    ratios = []
    for number in range(options.pairs):
        ours = options.rows / measured("stage_fuse", rows=options.rows, threads=options.threads)["seconds"]
        theirs = rows / measured("transformers_fuse", rows=rows, batch=best, threads=options.threads)["seconds"]
        ratios.append(round(ours / theirs, 2))
        print(f"  pair {number + 1}: {ours:.2f} rows/s against {theirs:.2f}, ratio {ratios[-1]}")
    return {"rows_per_s_by_batch": sweep, "ratios": ratios, "vllm_against_transformers": statistics.median(ratios)}


def compare_memory(options: argparse.Namespace) -> dict[str, Any]:
    found = measured("stage_fuse", rows=24, shards=50, threads=options.threads)
    growth = found["resident_mb"] / found["resident_5_mb"]
    print(f"  {found['resident_5_mb']:.0f} MB after 5 shards, {found['resident_mb']:.0f} MB after 50")
    return {**found, "memory_growth": round(growth, 4)}


def compare_markers(options: argparse.Namespace) -> dict[str, Any]:
    found = {shards: measured("markers", shards=shards) for shards in (100, 1_000, 10_000)}
    for shards, one in found.items():
        print(
            f"  {shards:>6,} shards: {1e3 * one['seconds'] / shards:.1f} ms a shard, {one['resume_seconds']:.2f} s to resume"
        )
    # The start of the worker is paid once, so that only the larger two compare.
    a_shard = [found[shards]["seconds"] / shards for shards in (1_000, 10_000)]
    return {
        "by_shards": {str(shards): one for shards, one in found.items()},
        "cost_growth_per_shard": round(a_shard[1] / a_shard[0], 3),
        "resume_10000_shards_s": round(found[10_000]["resume_seconds"], 2),
    }


def compare_ray(options: argparse.Namespace) -> dict[str, Any]:
    common = {"rows": options.rows // 4, "shards": 8, "threads": 1}
    ratios = paired(
        ("stages_on", {**common, "executor": "ray"}), ("stages_on", {**common, "executor": "local"}), options.pairs
    )
    return {"ratios": ratios, "ray_against_local": statistics.median(ratios)}


COMPARISONS = {
    "fuse": compare_fuse, "describe": compare_describe, "transformers": compare_transformers, "memory": compare_memory,
    "markers": compare_markers, "ray": compare_ray,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=list(COMPARISONS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=CPU_COUNT)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("-v", action="store_true", help="show what the arms print")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        result: dict[str, Any] = ARMS[options.arm](options.options)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    elif options.what:
        result = COMPARISONS[options.what](options)
        print(json.dumps({name: value for name, value in result.items() if isinstance(value, (int, float))}))
    else:
        parser.error(f"say what to compare: {', '.join(COMPARISONS)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
