"""The prompts: versioned, with their provenance, and the only way a web page's text gets into one.

An AltText is written by strangers. It enters as data: one line, no control characters, of bounded length, and nothing in it can
act as a role or an end of turn, for which the engine breaks its tokenizer's own special tokens as well.
"""

import json
import re
import unicodedata
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from veclip_core.captioning.engines.base import Message, Request
from veclip_core.config import Config

if TYPE_CHECKING:
    from PIL.Image import Image

Provenance = Literal["reconstructed", "own", "CapsFusion"]

VICUNA_TEMPLATE = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user\\'s questions.' }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ ' ' + message['content'] }}{% elif message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""Vicuna 1.1's conversation format: its tokenizer carries none."""


class DescribePrompt(Config):
    """What a vision-language model is asked about a picture."""

    id: str
    """Name and version."""
    provenance: Provenance
    """Where the text comes from; only `reconstructed` stands for the paper, and not word for word."""
    note: str = Field(exclude=True)
    """The source in words; no part of the identity."""
    text: str
    """The question."""


class FusePrompt(Config):
    """How a language model is asked to fuse AltText and VeC."""

    id: str
    """Name and version."""
    provenance: Provenance
    """Where the text comes from; only `reconstructed` stands for the paper, and not word for word."""
    note: str = Field(exclude=True)
    """The source in words; no part of the identity."""
    user: str
    """The question, with `{alt_text}` and `{vec}`."""
    system: str | None = None
    """The system turn, if any."""
    examples: tuple[tuple[str, str, str], ...] = ()
    """AltText, VeC and the fused caption: shown as earlier turns."""
    starts_with: str = ""
    """What the answer is made to start with; `{alt_text}` is the AltText. Tokens that the model would write anyway cost less."""
    max_bytes: int = Field(400, ge=16)
    """Each input is cut to so many UTF-8 bytes, which bounds its tokens in any byte-level vocabulary."""

    @property
    def own_texts(self) -> tuple[str, ...]:
        """What an answer may not repeat: the instruction and the examples' captions."""
        instruction = self.user.replace("{alt_text}", " ").replace("{vec}", " ")
        return (self.system or "", instruction, *(caption for _, _, caption in self.examples))

    def request(self, alt_text: str, vec: str) -> Request:
        """The prompt for one sample."""
        turns = [Message("system", self.system)] if self.system else []
        for shown_alt, shown_vec, caption in self.examples:
            turns += [Message("user", self._ask(shown_alt, shown_vec)), Message("assistant", caption)]
        alt, seen = as_data(alt_text, self.max_bytes), as_data(vec, self.max_bytes)
        turns.append(Message("user", self._ask(alt, seen)))
        return Request(tuple(turns), answer_prefix=_filled(self.starts_with, alt, seen))

    def _ask(self, alt_text: str, vec: str) -> str:
        return _filled(self.user, alt_text, vec)


class RewritePrompt(Config):
    """How a vision-language model is asked to rewrite an AltText while it sees the picture."""

    id: str
    """Name and version."""
    provenance: Provenance
    """Where the text comes from."""
    note: str = Field(exclude=True)
    """The source in words; no part of the identity."""
    user: str
    """The question, with `{alt_text}`."""
    max_bytes: int = Field(400, ge=16)
    """The AltText is cut to so many UTF-8 bytes."""

    @property
    def own_texts(self) -> tuple[str, ...]:
        """What an answer may not repeat."""
        return (self.user.replace("{alt_text}", " "),)

    def request(self, alt_text: str, image: "Image") -> Request:
        """The prompt for one sample; without an AltText it says that there is none."""
        asked = _filled(self.user, as_data(alt_text, self.max_bytes) or "(none)", "")
        return Request((Message("user", asked),), image=image)


class JudgePrompt(Config):
    """How a language model is asked whether a text may be used."""

    id: str
    """Name and version."""
    provenance: Provenance
    """Where the text comes from."""
    note: str = Field(exclude=True)
    """The source in words; no part of the identity."""
    user: str
    """The question, with `{text}`; an answer that begins with yes refuses the text."""
    max_bytes: int = Field(16_384, ge=16)
    """The text is cut to so many UTF-8 bytes: all of an AltText, because all of it would be kept."""

    def request(self, text: str) -> Request:
        """The prompt for one text."""
        return Request((Message("user", self.user.replace("{text}", as_data(text, self.max_bytes))),))


def _filled(pattern: str, alt_text: str, vec: str) -> str:
    # One pass: braces or placeholders inside the AltText stay what they are.
    given = {"{alt_text}": alt_text, "{vec}": vec}
    return re.sub(r"\{alt_text\}|\{vec\}", lambda match: given[match.group(0)], pattern)


_ROLE_WORD = re.compile(r"\b(system|user|assistant|human|instruction|response)\s*:", re.IGNORECASE)
_KEPT_FORMAT_CHARS = "\u200c\u200d"
"""The joiners that several scripts and composed emoji need."""


def as_data(text: str, max_bytes: int) -> str:
    """`text` as one harmless line: no control or direction-changing characters, no role marks, at most `max_bytes`."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        " " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and char not in _KEPT_FORMAT_CHARS
        else char
        for char in text
    )  # fmt: skip
    # `<|im_start|>`, `</s>`, `[INST]`, `<<SYS>>`, `<image>`: a space inside makes words of them.
    text = re.sub(r"([<\[])(?=[^\s=\]>-])", r"\1 ", text)
    text = re.sub(r"([|｜▁])(?=>)", r"\1 ", text)
    text = _ROLE_WORD.sub(r"\1 ", text)
    text = " ".join(text.split())
    return text.encode()[:max_bytes].decode(errors="ignore").rstrip()


@cache
def fuse_prompts() -> dict[str, FusePrompt]:
    """The presets by id."""
    return {prompt["id"]: FusePrompt.model_validate(prompt) for prompt in read_presets("fuse.json")}


@cache
def describe_prompts() -> dict[str, DescribePrompt]:
    """The presets by id."""
    return {prompt["id"]: DescribePrompt.model_validate(prompt) for prompt in read_presets("describe.json")}


def fuse_prompt(prompt_id: str) -> FusePrompt:
    """Raises ValueError that lists the presets."""
    if prompt_id not in fuse_prompts():
        raise ValueError(f"there is no fusion prompt {prompt_id!r}; there are {', '.join(fuse_prompts())}")
    return fuse_prompts()[prompt_id]


def describe_prompt(prompt_id: str) -> DescribePrompt:
    """Raises ValueError that lists the presets."""
    if prompt_id not in describe_prompts():
        raise ValueError(f"there is no describing prompt {prompt_id!r}; there are {', '.join(describe_prompts())}")
    return describe_prompts()[prompt_id]


@cache
def rewrite_prompts() -> dict[str, RewritePrompt]:
    """The presets by id."""
    return {prompt["id"]: RewritePrompt.model_validate(prompt) for prompt in read_presets("rewrite.json")}


def rewrite_prompt(prompt_id: str) -> RewritePrompt:
    """Raises ValueError that lists the presets."""
    if prompt_id not in rewrite_prompts():
        raise ValueError(f"there is no rewriting prompt {prompt_id!r}; there are {', '.join(rewrite_prompts())}")
    return rewrite_prompts()[prompt_id]


@cache
def judge_prompts() -> dict[str, JudgePrompt]:
    """The presets by id."""
    return {prompt["id"]: JudgePrompt.model_validate(prompt) for prompt in read_presets("judge.json")}


def judge_prompt(prompt_id: str) -> JudgePrompt:
    """Raises ValueError that lists the presets."""
    if prompt_id not in judge_prompts():
        raise ValueError(f"there is no judging prompt {prompt_id!r}; there are {', '.join(judge_prompts())}")
    return judge_prompts()[prompt_id]


def read_presets(name: str) -> list[dict[str, Any]]:
    """The entries of a file of `prompt_texts/`."""
    text = (resources.files("veclip_core.captioning") / "prompt_texts" / name).read_text(encoding="utf-8")
    return json.loads(text)
