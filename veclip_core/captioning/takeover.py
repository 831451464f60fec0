"""Whether a text speaks to the model instead of about the picture: `ignore the above`, a role mark, `the caption must say`.

Rules (`prompt_texts/takeover.json`) over a few readings of the text: as written, without invisible characters, look-alikes folded,
letters that stand apart joined, encoded pieces decoded. It is one of three fences: no token of a text can act as a role
(`prompts.as_data`, `chat.protect`), what is caught here never reaches a prompt, and an answer that obeyed all the same is compared
with its inputs (`quality.judge`). What each lets pass is measured in its test, on texts that the rules were not written on.
"""

import base64
import binascii
import html
import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

from veclip_core.config import digest_of

_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁһӏԛԝќмтвнкАЕОРСХІЈЅВМТНКαοιρυνεκτΑΕΙΟΡΤΥΧΒΜΝΚΗ",
    "aeopcyxijsdhlqwkmtbhkAEOPCXIJSBMTHKaoipuvektAEIOPTYXBMNKH",
)
_LEET = str.maketrans("0134578@$!", "oieastbasi")
_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    r"\U000e0000-\U000e007f]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SQUASHED = re.compile(
    r"(?:ignor(?:e|ing)|disregard|forget|overrid(?:e|ing)|bypass)(?:all|any|the|your|my|these|of|every)*"
    r"(?:(?:previous|prior|above|earlier|preceding|system|original|initial)(?:\w{0,3})(?:instruct|prompt|rules?|order|direct|task|command)"
    r"|instructions?|systemprompt|(?:rules|instructions)above|everything(?:above|before|you(?:were|was|have|are))|thingyouwere)"
    r"|thesystemprompt|donotfollowthe(?:rules|instr)"
)  # fmt: skip
"""For texts whose letters stand apart: spelled out, or cut by what was taken for a space."""
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{16,4000}={0,2}")
_LEETED = re.compile(r"\b(?=\w{0,24}[a-z])(?=\w{0,24}[0-9@$!])[a-z0-9@$!]{4,24}\b", re.IGNORECASE)
_ROLE_IN_CAPITALS = re.compile(
    r"(?:^|[a-z.!?,;:)\]'\"»”*]\s+)(?:SYSTEM|ASSISTANT|HUMAN|USER|INSTRUCTIONS?)\s*:|^\s*(?:SYSTEM|ASSISTANT)\s*:"
)
_BOT_NAME = re.compile(
    r"\byou(?:'re| are| were)?\b.{0,40}\b[A-Z]\w*(?:Bot|GPT)\b"
    r"|\b[A-Z]\w*(?:Bot|GPT)\b.{0,40}\b(?:you|lies|obeys|answers|writes)\b"
)
MAX_CHARS = 4_096
"""Of a longer reading the beginning and the end are searched. Every rule is bounded (no `*`, no `+`), so that a text of strangers
takes no more than some tens of milliseconds."""
RULES_VERSION = 2
"""Raised when what is beside the rules' file changes: the readings, and the expressions here."""


def takes_over(text: str) -> str | None:
    """The name of the rule by which `text` is addressed to a model, or None for a text that is about a picture."""
    for reading in dict.fromkeys(_capped(reading) for reading in _readings(_capped(text))):
        if _SQUASHED.search(re.sub(r"[\W_]", "", reading).casefold()):
            return "drop"
        if _ROLE_IN_CAPITALS.search(reading):
            return "roles"
        if _BOT_NAME.search(reading):
            return "persona"
        lowered = " ".join(reading.casefold().replace("’", "'").split())
        for name, rule in _rules():
            if rule.search(lowered):
                return name
        for language, (drop, orders) in _abroad():
            if drop.search(lowered) and orders.search(lowered):
                return f"drop_{language}"
    return _by_library(_capped(text))


def _capped(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS // 2]} {text[-MAX_CHARS // 2 :]}"


def _readings(text: str) -> Iterator[str]:
    """The text in the ways that a model may read it."""
    unescaped = html.unescape(html.unescape(text))
    yield _CONTROL.sub(" ", unescaped)
    tagged = "".join(chr(ord(char) - 0xE0000) for char in text if 0xE0020 <= ord(char) < 0xE007F)
    if tagged:
        yield tagged
    if text.count("%") > 2:
        yield unquote(text)
    plain = unicodedata.normalize("NFKC", _CONTROL.sub("", _INVISIBLE.sub("", unescaped)))
    yield plain
    folded = plain.translate(_LOOK_ALIKES)
    if plain.isascii() is False and sum(char.isascii() for char in folded) > len(folded) / 2:
        yield folded
    if len(_LEETED.findall(folded)) > 1:
        yield _LEETED.sub(lambda found: found.group(0).translate(_LEET), folded)
    yield plain[::-1]
    for piece in _BASE64.findall(plain):
        try:
            decoded = base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError):
            continue
        if decoded.isprintable():
            yield decoded


@cache
def _data() -> dict[str, Any]:
    """`words`: name -> alternatives, put in for «name» in `rules`; `abroad`: language -> words for `ignore`, and for what is to be
    ignored or done instead, both of which in one text are an order."""
    return json.loads((resources.files("veclip_core.captioning") / "prompt_texts" / "takeover.json").read_text("utf-8"))


def rules_digest() -> str:
    """Changes with the rules: other rules refuse other texts."""
    return digest_of([RULES_VERSION, version("glin-profanity"), _data()])[:16]


@cache
def _rules() -> list[tuple[str, re.Pattern[str]]]:
    words = {name: f"(?:{'|'.join(found)})" for name, found in _data()["words"].items()}

    def filled(alternatives: list[str]) -> str:
        return re.sub("«([A-Z]+)»", lambda found: words[found[1]], "|".join(alternatives))

    return [(name, re.compile(filled(alternatives))) for name, alternatives in _data()["rules"].items()]


@cache
def _abroad() -> list[tuple[str, tuple[re.Pattern[str], re.Pattern[str]]]]:
    # Letters of these scripts do not form words that \b would bound.
    unbounded = {"zh", "ja", "ko", "th", "ar", "hi"}
    found = []
    for language, words in _data()["abroad"].items():
        edge = "" if language in unbounded else r"\b"
        drop, orders = (re.compile(f"{edge}(?:{'|'.join(words[name])})") for name in ("drop", "orders"))
        found.append((language, (drop, orders)))
    return found


_CATEGORIES = ("instruction_override", "system_prompt_leak", "encoding_bypass")
"""The library's others take `User: guest` and `Jailbreak! Escape room` for attacks, and the less severe `developer mode`."""


def _by_library(text: str) -> str | None:
    """glin-profanity's patterns of prompt injection, those it calls critical."""
    from glin_profanity.scanners.prompt_injection import INJECTION_PATTERNS

    for known in INJECTION_PATTERNS:
        if known.category in _CATEGORIES and known.severity == "critical" and known.pattern.search(text):
            return known.category
    return None
