"""One interface for everything that generates text: requests in, generations out, in order.

`EngineConfig` is what changes the text (model, revision, dtype, quantisation); `EngineRuntime` only how fast it comes.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from veclip_core.captioning.engines.weights import SMOLLM2
from veclip_core.config import Config

if TYPE_CHECKING:
    from PIL.Image import Image


class EngineConfig(Config):
    """The model, as far as it decides the text."""

    model: str = SMOLLM2
    """`SmolLM2-135M-Instruct` (from its package), a folder, or a hub id `owner/name`."""
    revision: str | None = None
    """Commit or tag on the hub, or a digest of the folder's files; `weights.pinned` finds it out at the first run."""
    folder: str | None = Field(None, exclude=True)
    """Where the weights lie, for a model that is a folder: its place is no part of the identity."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format of weights and activations."""
    quantization: str | None = None
    """vLLM's name of a quantisation, such as `fp8`; None for the weights as they are."""
    max_model_len: int = Field(2048, ge=64)
    """Tokens of prompt and answer together; a longer prompt is answered with the finish reason `prompt_too_long`."""
    chat_template: str | None = None
    """Jinja chat template for models whose tokenizer has none (Vicuna 1.1); None takes the tokenizer's."""


class EngineRuntime(BaseModel):
    """How and where the engine runs; never part of an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["auto", "vllm", "transformers", "openai"] = "auto"
    """`auto` is vLLM where it is installed, else transformers; `openai` asks a server."""
    server: str = ""
    """The server's address for `openai`, such as `http://host:8000/v1`."""
    api_key: str = Field("", repr=False)
    """The server's key, where it wants one."""
    deadline_s: float = Field(300.0, gt=0)
    """How long one request to a server may take."""
    weights_dir: Path = Path("data/weights")
    """Where weights that a package carries are converted to."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is CUDA where there is one. vLLM's device is that of its build."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; None leaves it to the library."""
    batch_size: int | None = Field(None, ge=1)
    """Requests computed side by side; None takes 128 for vLLM, 32 for transformers, 64 for a server."""
    kv_cache_gb: int = Field(1, ge=1)
    """Gibibytes for vLLM's KV cache on the CPU."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share one engine."""
    share_prefixes: bool = True
    """Whether vLLM keeps what prompts begin with. Of no use, and not free, where each begins with a picture of its own."""
    compile: bool | None = None
    """Whether vLLM compiles the model: None compiles on CUDA only (on a CPU it costs 50 s for 5 % more speed)."""


class Sampling(Config):
    """How the next token is chosen."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that tokens are drawn from."""
    max_tokens: int = Field(48, ge=1)
    """Longest answer in tokens."""
    candidates: int = Field(1, ge=1)
    """Answers per request; more than one needs a temperature."""
    seed: int = 0
    """With the prompt's own tokens it seeds each request, so that neither order nor batch matters."""
    stop: tuple[str, ...] = ("\n",)
    """The answer ends before the first of these."""


@dataclass(frozen=True)
class Message:
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """A prompt: the turns so far, words the answer must start with, and for a vision model the picture."""

    messages: tuple[Message, ...]
    answer_prefix: str = ""
    image: "Image | None" = None


@dataclass(frozen=True)
class Generation:
    """One answer, its prefix included."""

    text: str
    finish_reason: str
    """`stop`, `length`, `prompt_too_long`, or a server's `content_filter` and `refused_by_server`."""
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """A loaded model."""

    @property
    def model_id(self) -> str: ...

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> list[list[Generation]]:
        """`sampling.candidates` generations for each request, in the order of the requests.

        Requests with pictures are taken a few at a time, so that an iterator may make them while earlier ones are computed.
        """
        ...

    def close(self) -> None: ...


def engine_name(runtime: EngineRuntime) -> Literal["vllm", "transformers", "openai"]:
    """The engine that `auto` stands for on this machine. Imports nothing."""
    if runtime.engine != "auto":
        return runtime.engine
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def make_engine(config: EngineConfig, runtime: EngineRuntime | None = None) -> Engine:
    """Load the model.

    Raises:
        WeightsMissing: the weights are not on this machine and can't be fetched.
        ServerError: the server does not answer, or does not serve the model.
    """
    runtime = runtime or EngineRuntime()
    if engine_name(runtime) == "openai":
        from veclip_core.captioning.engines.openai_engine import OpenAiEngine

        return OpenAiEngine(config, runtime)
    if engine_name(runtime) == "vllm":
        from veclip_core.captioning.engines.vllm_engine import VllmEngine

        return VllmEngine(config, runtime)
    from veclip_core.captioning.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config, runtime)


@contextmanager
def opened(config: EngineConfig, runtime: EngineRuntime | None = None) -> Iterator[Engine]:
    """An engine for the length of a with block."""
    engine = make_engine(config, runtime)
    try:
        yield engine
    finally:
        engine.close()
