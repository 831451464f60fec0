"""Text and vision-language models through transformers' `generate`: the engine that runs everywhere."""

import copy
import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from veclip_core.captioning.engines import chat
from veclip_core.captioning.engines.base import EngineConfig, EngineRuntime, Generation, Request, Sampling
from veclip_core.captioning.engines.weights import checked_config, resolve_model

log = logging.getLogger(__name__)

BATCH = 32
AHEAD = 4
"""Batches of pictures that are in memory at a time."""
MIN_SHARED = 64
"""Tokens that all prompts must begin with to be worth computing once."""


class TransformersEngine:
    """Batches of similar length, padded on the left. Greedy by default; a drawn answer is computed alone, from its own seed."""

    def __init__(self, config: EngineConfig, runtime: EngineRuntime):
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        if config.quantization:
            raise ValueError(
                f"quantization {config.quantization!r} needs vLLM: choose engine `vllm` or no quantization"
            )
        self.config, self.runtime, self.model_id = config, runtime, config.model
        path = resolve_model(config.folder or config.model, runtime.weights_dir)
        revision = None if config.folder else config.revision
        model_config = checked_config(path, revision)
        if runtime.threads:
            torch.set_num_threads(runtime.threads)
        cuda = runtime.device == "cuda" or (runtime.device == "auto" and torch.cuda.is_available())
        self._device = torch.device("cuda" if cuda else "cpu")
        self._sees = hasattr(model_config, "vision_config")
        loader: Any = AutoModelForImageTextToText if self._sees else AutoModelForCausalLM
        model = loader.from_pretrained(path, revision=revision, dtype=getattr(torch, config.dtype))
        self._model: Any = model.eval().to(self._device)
        self._processor: Any = AutoProcessor.from_pretrained(path, revision=revision) if self._sees else None
        self._tokenizer: Any = (
            self._processor.tokenizer if self._processor else AutoTokenizer.from_pretrained(path, revision=revision)
        )
        self._owner: Any = self._processor or self._tokenizer
        if config.chat_template:
            self._owner.chat_template = config.chat_template
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "left"
        self._specials = chat.special_tokens(self._tokenizer)

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> list[list[Generation]]:
        taken = iter(requests)
        first = next(taken, None)
        if first is None:
            return []
        # Texts are sorted over all of them; of pictures, which are large, only some are in memory.
        some = None if first.image is None else AHEAD * (self.runtime.batch_size or BATCH)
        answers: list[list[Generation]] = []
        taken = chain([first], taken)
        while window := list(islice(taken, some)):
            answers += self._generate(window, sampling)
            window.clear()  # not beside the next one
        return answers

    def _generate(self, requests: list[Request], sampling: Sampling) -> list[list[Generation]]:
        prompts = [chat.render(request, self._owner, self._specials) for request in requests]
        ids = [chat.token_ids(prompt, self._tokenizer) for prompt in prompts]
        results: dict[int, list[Generation]] = {}
        fitting = []
        for index, tokens in enumerate(ids):
            if len(tokens) + sampling.max_tokens > self.config.max_model_len:
                results[index] = [Generation("", "prompt_too_long", len(tokens), 0)] * sampling.candidates
            else:
                fitting.append(index)
        fitting.sort(key=lambda index: len(ids[index]))
        # A drawn answer depends on the state of one generator for the whole batch: alone, it depends on its own seed only.
        size = 1 if sampling.temperature else self.runtime.batch_size or BATCH
        pictures = any(request.image is not None for request in requests)
        shared = None if pictures or sampling.temperature else self._shared_prefix([ids[index] for index in fitting])
        for start in range(0, len(fitting), size):
            batch = fitting[start : start + size]
            parts = ([requests[i] for i in batch], [prompts[i] for i in batch], [ids[i] for i in batch])
            answers = self._answer(*parts, sampling, shared)
            results.update(zip(batch, answers, strict=True))
        return [results[index] for index in range(len(requests))]

    def close(self) -> None:
        self._model = None

    def _shared_prefix(self, ids: list[list[int]]) -> Any:
        """The key-value cache of what all prompts begin with (a few-shot prompt's examples), or None."""
        import torch

        if len(ids) < 2:
            return None
        first, last = min(ids), max(ids)
        # What the smallest and the largest row share, all between them share too.
        length = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        # Each prompt needs a token of its own to answer from.
        length = min(length, min(map(len, ids)) - 1)
        if length < MIN_SHARED:
            return None
        with torch.inference_mode():
            prefix = torch.tensor([first[:length]], device=self._device)
            return self._model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values

    def _answer(
        self, requests: list[Request], prompts: list[str], ids: list[list[int]], sampling: Sampling, shared: Any
    ) -> list[list[Generation]]:
        import torch
        from transformers import StoppingCriteriaList

        if self._sees and requests[0].image is not None:
            # A processor puts the picture's placeholder tokens in itself, hence the text.
            images = [[request.image.convert("RGB")] for request in requests if request.image is not None]
            inputs = self._processor(
                text=prompts, images=images, padding=True, add_special_tokens=False, return_tensors="pt"
            )
        else:
            inputs = self._padded(ids, shared)
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        if shared is not None:
            inputs["past_key_values"] = copy.deepcopy(shared)
            inputs["past_key_values"].batch_repeat_interleave(len(ids))
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(chat.request_seed(sampling, ids[0]))
        begins = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=sampling.max_tokens,
                num_return_sequences=sampling.candidates,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([_StopAt(self._tokenizer, sampling.stop, begins)]),
                **(drawn if sampling.temperature else {"do_sample": False}),
            )
        new = output[:, begins:].tolist()
        return [
            [
                self._generation(request, prompt_ids, new[row * sampling.candidates + candidate], sampling)
                for candidate in range(sampling.candidates)
            ]
            for row, (request, prompt_ids) in enumerate(zip(requests, ids, strict=True))
        ]

    def _padded(self, ids: list[list[int]], shared: Any) -> dict[str, Any]:
        """Tokens and mask, one row a prompt; the padding comes after what is shared, or else first."""
        import torch

        kept = shared.get_seq_length() if shared is not None else 0
        width = max(map(len, ids))
        pad = self._tokenizer.pad_token_id
        tokens = [row[:kept] + [pad] * (width - len(row)) + row[kept:] for row in ids]
        mask = [[1] * kept + [0] * (width - len(row)) + [1] * (len(row) - kept) for row in ids]
        return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}

    def _generation(self, request: Request, prompt_ids: list[int], new: list[int], sampling: Sampling) -> Generation:
        ends = set(_as_list(self._model.generation_config.eos_token_id)) | {self._tokenizer.eos_token_id}
        end = next((place for place, token in enumerate(new) if token in ends), None)
        said = new if end is None else new[:end]
        text, stopped = chat.cut_at_stop(self._tokenizer.decode(said, skip_special_tokens=True), sampling.stop)
        used = len(new) if end is None else end + 1
        return Generation(
            text=request.answer_prefix + text,
            finish_reason="stop" if stopped or end is not None else "length",
            prompt_tokens=len(prompt_ids),
            completion_tokens=used,
        )


class _StopAt:
    """Ends each row of a batch at its first stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], begins: int):
        self._tokenizer, self._stop, self._begins = tokenizer, stop, begins

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        # The last few tokens hold any stop string that has just been completed.
        tails = self._tokenizer.batch_decode(input_ids[:, max(self._begins, input_ids.shape[1] - 8) :])
        done = [any(mark in tail for mark in self._stop) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
