"""Models behind any server that speaks OpenAI's chat protocol: `vllm serve`, SGLang, llama.cpp, or a provider.

The server's chat template and tokenizer are out of sight, so that special tokens of all model families in use are broken in what
is sent. Words that an answer must begin with go as an unfinished assistant turn, which vLLM and SGLang continue.
"""

import asyncio
import base64
import hashlib
import io
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from veclip_core.captioning.engines import chat
from veclip_core.captioning.engines.base import EngineConfig, EngineRuntime, Generation, Request, Sampling
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BATCH = 64
AHEAD = 4
"""Batches that wait at the client, so that the server never does."""
RETRIES = 4
"""Of one request, with the client's growing pauses: for answers 408, 409, 429 and 5xx, and for lost connections."""
OF_THE_REQUEST = (400, 413, 422)
"""Status codes that say that the request itself can't be answered: its row gets a reason."""
ALL_REFUSED = 4
"""So many requests together, all refused, are no accident."""
BAD_ANSWERS = 3
"""How often a request is asked again when what came back is no answer at all."""


class ServerError(Mendable):
    """The server can't be used; the message says what was asked and what came back."""


class OpenAiEngine:
    """Requests side by side to one server. Its model must be loaded already."""

    def __init__(self, config: EngineConfig, runtime: EngineRuntime):
        self.config, self.runtime, self.model_id = config, runtime, config.model
        self._refusal = ""
        if not runtime.server:
            raise ServerError(
                "engine `openai` needs the server's address: set VECLIP_FUSER_URL and VECLIP_DESCRIBER_URL, such as"
                " http://127.0.0.1:8000/v1"
            )
        self._require_model()

    def _require_model(self) -> None:
        import openai

        options: dict[str, Any] = {"timeout": min(self.runtime.deadline_s, 30.0), "max_retries": 2}
        try:
            with openai.OpenAI(
                base_url=self.runtime.server, api_key=self.runtime.api_key or "none", **options
            ) as client:
                served = [model.id for model in client.models.list()]
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            raise ServerError(
                f"no OpenAI-compatible server answers at {self.runtime.server} ({type(error).__name__}: {error})."
                " Start it (`vllm serve MODEL`), or mend VECLIP_FUSER_URL, VECLIP_DESCRIBER_URL or VECLIP_API_KEY."
            ) from error
        if self.config.model not in served:
            raise ServerError(
                f"{self.runtime.server} serves {', '.join(served) or 'no model'}, not {self.config.model}: name the model"
                " as it is served (VECLIP_FUSER, VECLIP_DESCRIBER), or serve it under this name (--served-model-name)"
            )

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> list[list[Generation]]:
        """Raises ServerError when the server stops answering: the shard is then tried again."""
        made = asyncio.run(self._generate(iter(requests), sampling))
        if len(made) >= ALL_REFUSED and all(one.finish_reason == "refused_by_server" for row in made for one in row):
            # Not the rows are at fault but the question: rows with reasons would be final.
            raise ServerError(f"{self.runtime.server} refuses every request: {self._refusal}")
        return made

    def close(self) -> None:
        """The server stays up: it is not ours."""

    async def _generate(self, requests: Iterable[Request], sampling: Sampling) -> list[list[Generation]]:
        from openai import AsyncOpenAI

        side_by_side = self.runtime.batch_size or BATCH
        results: list[list[Generation]] = []
        async with AsyncOpenAI(
            base_url=self.runtime.server,
            api_key=self.runtime.api_key or "none",
            timeout=self.runtime.deadline_s,
            max_retries=RETRIES,
        ) as client:
            free = asyncio.Semaphore(side_by_side)

            async def one(request: Request) -> list[Generation]:
                async with free:
                    return await self._ask(client, request, sampling)

            asked: list[asyncio.Task[list[Generation]]] = []
            # In order, a window at a time: pictures that wait cost memory.
            while True:
                new = list(islice(requests, side_by_side * AHEAD - len(asked)))
                asked += [asyncio.create_task(one(request)) for request in new]
                if not asked:
                    return results
                try:
                    results.append(await asked.pop(0))
                except BaseException:
                    for task in asked:
                        task.cancel()
                    raise

    async def _ask(self, client: "AsyncOpenAI", request: Request, sampling: Sampling) -> list[Generation]:
        import openai

        question = _question(self.config.model, request, sampling)
        answer: Any = None
        try:
            for _ in range(BAD_ANSWERS):
                answer = await client.chat.completions.create(**question)
                if getattr(answer, "choices", None) and all(choice.message for choice in answer.choices):
                    return _generations(answer, request, sampling)
        except openai.OpenAIError as error:
            if isinstance(error, openai.APIStatusError) and error.status_code in OF_THE_REQUEST:
                too_long = "maximum" in str(error) or "context length" in str(error) or "too long" in str(error)
                reason = "prompt_too_long" if too_long else "refused_by_server"
                self._refusal = str(error)
                return [Generation("", reason, 0, 0)] * sampling.candidates
            raise ServerError(
                f"{self.runtime.server} does not answer ({type(error).__name__}: {error}), after {RETRIES} more tries"
            ) from error
        raise ServerError(f"{self.runtime.server} answers what is no chat completion: {str(answer)[:200]!r}")


def _question(model: str, request: Request, sampling: Sampling) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    pictured = request.image is None
    for message in request.messages:
        content: Any = chat.protect(message.content, chat.WELL_KNOWN)
        if not pictured and message.role == "user":
            content = [
                {"type": "image_url", "image_url": {"url": _data_url(request.image)}},
                {"type": "text", "text": content},
            ]
            pictured = True
        messages.append({"role": message.role, "content": content})
    question: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "n": sampling.candidates,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        "seed": _seed(sampling, request),
    }
    if request.answer_prefix:
        messages.append({"role": "assistant", "content": chat.protect(request.answer_prefix, chat.WELL_KNOWN)})
        question["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
    return question


def _seed(sampling: Sampling, request: Request) -> int:
    """A function of the seed and of the prompt alone, as the other engines' is."""
    text = "\0".join([str(sampling.seed), *(message.content for message in request.messages), request.answer_prefix])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _data_url(image: Any) -> str:
    # PNG: the server sees the very pixels that an engine in this process would.
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _generations(answer: Any, request: Request, sampling: Sampling) -> list[Generation]:
    usage = answer.usage
    read = usage.prompt_tokens if usage else 0
    # The protocol counts the tokens of all candidates together.
    written = usage.completion_tokens if usage else 0
    share, rest = divmod(written, len(answer.choices))
    return [
        Generation(
            text=request.answer_prefix + (choice.message.content or ""),
            finish_reason=choice.finish_reason or "stop",
            prompt_tokens=read,
            completion_tokens=share + (number < rest),
        )
        for number, choice in enumerate(sorted(answer.choices, key=lambda choice: choice.index))
    ]
