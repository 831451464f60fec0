"""Texts to token ids: CLIP's byte pairs, whole or cut down to those a manifest uses.

A small model spends most of its parameters on rows of the token embedding that no text reaches. Over the 49,408 byte pairs
`sample-rn` has 11.8M parameters, over those in use about 3.3M.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PAD = 0
REMEMBERED_TEXTS = 200_000
"""Texts whose ids are kept: all of a small manifest, a bounded part of a large one."""


@lru_cache(maxsize=1)
def _bpe() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=REMEMBERED_TEXTS)
def _byte_pairs(text: str) -> tuple[int, ...]:
    """Ids in CLIP's vocabulary, without start and end; lower-cased, white space and HTML escapes cleaned by open_clip."""
    return tuple(_bpe().encode(text))


@dataclass(frozen=True)
class BpeTokenizer:
    """CLIP's tokenizer: every row is start, tokens, end, then zeros; the end is the largest id, where the text tower pools."""

    context_length: int

    @property
    def vocab_size(self) -> int:
        return int(_bpe().vocab_size)

    def __call__(self, texts: Sequence[str]) -> "torch.Tensor":
        """Ids_BL, int64."""
        start, end = _bpe().all_special_ids
        return _padded([_byte_pairs(text) for text in texts], start, end, self.context_length)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "context_length": self.context_length}


@dataclass(frozen=True)
class SampleTokenizer:
    """CLIP's byte pairs renumbered: 0 pads, then the ids in use in their order, then start and end of text.

    A byte pair outside of the vocabulary drops out of the text.
    """

    context_length: int
    byte_pairs: tuple[int, ...]
    """CLIP's ids in use, ascending, without start and end; row i of the embedding is `byte_pairs[i - 1]`."""
    _new_id: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_new_id", {old: new for new, old in enumerate(self.byte_pairs, start=1)})

    @classmethod
    def of_texts(cls, texts: Iterable[str], context_length: int) -> "SampleTokenizer":
        """The vocabulary of some texts: those of all arms of an experiment, so that they share it."""
        in_use: set[int] = set()
        for text in texts:
            in_use.update(_byte_pairs(text))
        return cls(context_length, tuple(sorted(in_use)))

    @property
    def vocab_size(self) -> int:
        return len(self.byte_pairs) + 3

    def __call__(self, texts: Sequence[str]) -> "torch.Tensor":
        """Ids_BL, int64."""
        known = [[self._new_id[old] for old in _byte_pairs(text) if old in self._new_id] for text in texts]
        return _padded(known, self.vocab_size - 2, self.vocab_size - 1, self.context_length)

    def clip_ids(self) -> list[int]:
        """CLIP's id of each row of the embedding; the padding's is 0, which CLIP pads with too."""
        return [PAD, *self.byte_pairs, *_bpe().all_special_ids]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe-in-use", "context_length": self.context_length, "byte_pairs": list(self.byte_pairs)}


Tokenizer = BpeTokenizer | SampleTokenizer


def tokenizer_from_json(value: dict[str, Any]) -> Tokenizer:
    if value["kind"] == "bpe":
        return BpeTokenizer(value["context_length"])
    return SampleTokenizer(value["context_length"], tuple(value["byte_pairs"]))


def _padded(rows: Sequence[Sequence[int]], start: int, end: int, context_length: int) -> "torch.Tensor":
    import torch

    ids_BL = np.full((len(rows), context_length), PAD, dtype=np.int64)
    for row, tokens in zip(ids_BL, rows, strict=True):
        kept = tokens[: context_length - 2]
        row[0] = start
        row[1 : len(kept) + 1] = kept
        row[len(kept) + 1] = end
    return torch.from_numpy(ids_BL)
