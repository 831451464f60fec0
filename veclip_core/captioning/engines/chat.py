"""From messages to the tokens a model reads; the same for every engine."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from veclip_core.captioning.engines.base import Request, Sampling

WELL_KNOWN = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<start_of_turn>", "<end_of_turn>",
    "<start_of_image>", "<bos>", "<eos>", "<image>", "<pad>", "<unk>", "<image_soft_token>", "<s>", "</s>", "[INST]", "[/INST]",
    "[IMG]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "<<SYS>>", "<</SYS>>", "<｜User｜>",
    "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
)  # fmt: skip
"""Special tokens of the model families in use, for a server whose tokenizer is out of sight."""


def special_tokens(tokenizer: Any) -> list[str]:
    """The strings that the tokenizer turns into one special token: roles, ends of turn, picture placeholders."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)


def protect(text: str, specials: Iterable[str]) -> str:
    """`text` with every special token broken by a space: what comes in as words may not act as a role."""
    for token in specials:
        if len(token) > 1:
            while token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def render(request: Request, template_owner: Any, specials: Sequence[str]) -> str:
    """The prompt as text. `template_owner` is a tokenizer, or for requests with a picture a processor."""
    turns: list[dict[str, Any]] = []
    pictured = request.image is None
    for message in request.messages:
        content: Any = protect(message.content, specials)
        if request.image is not None:
            content = [{"type": "text", "text": content}]
            if not pictured and message.role == "user":
                content.insert(0, {"type": "image"})
                pictured = True
        turns.append({"role": message.role, "content": content})
    if not pictured:
        raise ValueError("a request with a picture needs a user message to carry it")
    prompt = template_owner.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return prompt + protect(request.answer_prefix, specials)


def token_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Tokens of a rendered prompt; the template has already written the beginning-of-text token if there is one."""
    begin = tokenizer.bos_token
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if begin and getattr(tokenizer, "add_bos_token", False) and not prompt.startswith(begin):
        ids = [tokenizer.bos_token_id, *ids]
    return ids


def request_seed(sampling: Sampling, ids: Sequence[int]) -> int:
    """A seed of the request's own: a function of the seed and of the prompt alone."""
    digest = hashlib.sha256(f"{sampling.seed}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    ends = [text.index(mark) for mark in stop if mark in text]
    return (text[: min(ends)], True) if ends else (text, False)
