"""Text and vision-language models through vLLM, on CUDA or on the CPU build; one engine in this process."""

import gc
import itertools
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core.captioning.engines import chat
from veclip_core.captioning.engines.base import EngineConfig, EngineRuntime, Generation, Message, Request, Sampling
from veclip_core.captioning.engines.weights import checked_config, resolve_model

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

BATCH = 128
AHEAD = 2
"""Batches of pictures that are preprocessed before they are computed."""
OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""vLLM's variable: whether the engine computes in a process of its own. What is set stays."""
WATCH_S = 1.0
"""Between two looks at whether the engine's process lives."""
CPU_BLOCK = 128
"""Tokens of a KV block on the CPU, a tenth faster than 32 there. Prefixes are shared by whole blocks: a prompt with examples
should fill them (`fuse-sentence-v2` does), for what sticks out is computed anew for every row."""


class VllmEngine:
    """Continuous batching over a whole shard; the examples of a few-shot prompt are computed once (prefix caching)."""

    def __init__(self, config: EngineConfig, runtime: EngineRuntime):
        self.config, self.runtime, self.model_id = config, runtime, config.model
        path = resolve_model(config.folder or config.model, runtime.weights_dir)
        revision = None if config.folder else config.revision
        self._before = _prepare_environment(runtime, offline=Path(path).is_dir())
        model_config = checked_config(path, revision)
        from vllm import LLM

        self._sees = hasattr(model_config, "vision_config")
        on_cpu = _is_cpu_build()
        compiled = not on_cpu if runtime.compile is None else runtime.compile
        options: dict[str, Any] = {
            "revision": revision,
            "dtype": config.dtype,
            "quantization": config.quantization,
            "max_model_len": config.max_model_len,
            "enforce_eager": not compiled,
            "enable_prefix_caching": runtime.share_prefixes,
            "tensor_parallel_size": runtime.tensor_parallel,
            # Its group of GPUs is this worker's own, on Ray too: vLLM need not look for them.
            **({"distributed_executor_backend": "mp"} if runtime.tensor_parallel > 1 else {}),
            "max_num_seqs": runtime.batch_size or BATCH,
            "disable_log_stats": True,
        }
        if on_cpu:
            # With chunked prefill a request's own seed fails on the CPU ("CPU Generator does not use offset").
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(32_768, config.max_model_len)}
            options["block_size"] = CPU_BLOCK
        else:
            options |= {"gpu_memory_utilization": runtime.gpu_memory_utilization}
        if self._sees:
            # Every picture comes once: a cache of preprocessed pictures only makes host memory grow.
            options |= {"limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0}
        self._llm: Any = LLM(model=path, **options)
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._owner: Any = self._tokenizer
        if self._sees:
            from transformers import AutoProcessor

            self._owner = AutoProcessor.from_pretrained(path, revision=revision)
        if config.chat_template:
            self._owner.chat_template = config.chat_template
        self._specials = chat.special_tokens(self._tokenizer)
        self._pictures = itertools.count()
        self._closed = threading.Event()
        threading.Thread(target=self._raise_when_it_dies, name="engine watch", daemon=True).start()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> list[list[Generation]]:
        from vllm.exceptions import VLLMValidationError

        results: dict[int, list[Generation]] = {}
        asked: list[tuple[int, str]] = []
        outputs: list[Any] = []
        asks: tuple[Message, ...] | None = None
        for index, request in enumerate(requests):
            # A describer asks the same of every picture, and a template takes half a millisecond.
            if request.messages != asks:
                text = chat.render(request, self._owner, self._specials)
                ids = chat.token_ids(text, self._tokenizer)
                asks = None if request.image is None or request.answer_prefix else request.messages
            if len(ids) + sampling.max_tokens > self.config.max_model_len:
                results[index] = [Generation("", "prompt_too_long", len(ids), 0)] * sampling.candidates
                continue
            prompt = {"prompt_token_ids": ids} if request.image is None else self._with_picture(text, request.image)
            try:
                self._llm.enqueue([prompt], [_sampling_params(sampling, ids)], use_tqdm=False)
            except VLLMValidationError as error:
                if "max_model_len" not in str(error):
                    raise
                # A picture has tokens too.
                results[index] = [Generation("", "prompt_too_long", len(ids), 0)] * sampling.candidates
                continue
            asked.append((index, request.answer_prefix))
            # The first request alone puts the shared examples into the cache; all at once, each would compute them. It goes alone
            # in every call, also where they are cached already: answers depend a little on who shares the batch, and a shard's
            # must not depend on which shards its engine made before.
            alone = len(asked) == 1
            # Prompts of text wait in the engine; preprocessed pictures are large, so that only some of them do.
            at_most = 0 if alone else AHEAD * (self.runtime.batch_size or BATCH) if request.image is not None else None
            self._run(outputs, at_most)
        self._run(outputs, 0)
        # A late request may be finished before an early one; the engine numbers them as they come.
        outputs.sort(key=lambda output: int(output.request_id))
        for (index, prefix), output in zip(asked, outputs, strict=True):
            read = len(output.prompt_token_ids)
            results[index] = [
                Generation(prefix + answer.text, answer.finish_reason or "stop", read, len(answer.token_ids))
                for answer in output.outputs
            ]
        return [results[index] for index in range(len(results))]

    def _with_picture(self, text: str, image: "Image") -> dict[str, Any]:
        # With a name of its own a picture's pixels need not be hashed: each comes once.
        return {
            "prompt": text,
            "multi_modal_data": {"image": image if image.mode == "RGB" else image.convert("RGB")},
            "multi_modal_uuids": {"image": [f"picture {next(self._pictures)}"]},
        }

    def _run(self, outputs: list[Any], at_most: int | None) -> None:
        """Compute until no more than `at_most` requests are unfinished (None: don't), adding what is finished to `outputs`."""
        engine = self._llm.llm_engine
        while at_most is not None and engine.get_num_unfinished_requests() > at_most:
            outputs += [output for output in engine.step() if output.finished]

    def _raise_when_it_dies(self) -> None:
        """Wake whoever waits for an answer of an engine that was killed in its own process.

        vLLM 0.32's synchronous client notes the death, refuses further requests, and leaves `step` waiting for ever.
        """
        client = self._llm.llm_engine.engine_core
        if not hasattr(client, "outputs_queue"):  # the engine is in this process
            return
        while not self._closed.wait(WATCH_S):
            if client.resources.engine_dead:
                client.outputs_queue.put_nowait(RuntimeError("vLLM's engine process died"))
                return

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._closed.set()
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()
        gc.collect()
        self._before.restore()


@dataclass(frozen=True)
class _Process:
    """What vLLM changes in the process that it runs in."""

    environment: dict[str, str]
    cores: set[int]

    @classmethod
    def now(cls) -> "_Process":
        return cls(dict(os.environ), os.sched_getaffinity(0))

    def restore(self) -> None:
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)
        os.sched_setaffinity(0, self.cores)


def _prepare_environment(runtime: EngineRuntime, offline: bool) -> _Process:
    """Set what vLLM takes from the environment only, and reads when it is imported; returns what was there before."""
    before = _Process.now()
    wanted = {
        # On a CPU the engine loads in 4 s instead of 49 s in one process. Beside a GPU a process of its own computes while this
        # one prepares the next pictures.
        OWN_PROCESS: before.environment.get(OWN_PROCESS, "0" if _has_cpu_build() else "1"),
        # A forked engine would have lost the thread by which it ends with its worker (processes.end_with_parent).
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": str(runtime.kv_cache_gb),
    }
    if runtime.threads:
        # Left to itself on a busy machine it fell to a tenth of its speed.
        wanted |= {"OMP_NUM_THREADS": str(runtime.threads), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    if offline:
        wanted["HF_HUB_OFFLINE"] = "1"
    os.environ.update(wanted)
    return before


def _has_cpu_build() -> bool:
    """Told by the package's name: what is set here must be set before vLLM is imported."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


def _is_cpu_build() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _sampling_params(sampling: Sampling, ids: Sequence[int]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        n=sampling.candidates,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        seed=chat.request_seed(sampling, ids) if sampling.temperature else None,
    )
