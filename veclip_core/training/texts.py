"""Texts to token ids: CLIP's byte pairs, whole or cut down to those a manifest uses, or T5's pieces.

A small model spends most of its parameters on rows of the token embedding that no text reaches. Over the 49,408 byte pairs
`sample-rn` has 11.8M parameters, over those in use about 3.3M.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    import torch

PAD = 0
T5_END = 1
"""T5's end of text, with which its vocabulary begins after the padding."""
T5_HUB = "google-t5/t5-base"
"""Where the hub has the tokenizer of the released checkpoints, which call it `t5-base`."""
REMEMBERED_TEXTS = 200_000
"""Texts whose ids are kept: all of a small manifest, a bounded part of a large one."""


@dataclass(frozen=True)
class Encoded:
    """Texts as a model reads them."""

    ids_BL: "torch.Tensor"
    """int64."""
    truncated: int
    """Texts that were longer than the context, and lost their end."""


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

    def encode(self, texts: Sequence[str]) -> Encoded:
        start, end = _bpe().all_special_ids
        return _padded([_byte_pairs(text) for text in texts], start, end, self.context_length)

    def __call__(self, texts: Sequence[str]) -> "torch.Tensor":
        """Ids_BL, int64."""
        return self.encode(texts).ids_BL

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

    def encode(self, texts: Sequence[str]) -> Encoded:
        known = [[self._new_id[old] for old in _byte_pairs(text) if old in self._new_id] for text in texts]
        return _padded(known, self.vocab_size - 2, self.vocab_size - 1, self.context_length)

    def __call__(self, texts: Sequence[str]) -> "torch.Tensor":
        """Ids_BL, int64."""
        return self.encode(texts).ids_BL

    def clip_ids(self) -> list[int]:
        """CLIP's id of each row of the embedding; the padding's is 0, which CLIP pads with too."""
        return [PAD, *self.byte_pairs, *_bpe().all_special_ids]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe-in-use", "context_length": self.context_length, "byte_pairs": list(self.byte_pairs)}


class TokenizerMissing(Mendable):
    """T5's tokenizer is not on this machine, or what was given is another; the message says how to give it."""


@dataclass(frozen=True)
class T5Tokenizer:
    """T5's pieces of the lower-cased text, the end of text, then zeros.

    Unlike CLIP's the end is not the largest id: the text tower must be told to pool at `T5_END`. The vocabulary is kept with a
    checkpoint (1 to 3 MB), so that it needs no file from elsewhere.
    """

    context_length: int
    definition: str = field(repr=False)
    """JSON of the `tokenizers` library, lower-casing included."""
    _tokenizer: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer as Definition

        object.__setattr__(self, "_tokenizer", Definition.from_str(self.definition))

    @classmethod
    def load(cls, context_length: int, source: str = T5_HUB) -> "T5Tokenizer":
        """The tokenizer of a folder (its `tokenizer.json`), or of a hub id: from this machine's cache or, where there is a network,
        the hub.

        Raises:
            TokenizerMissing: when it can't be had, or pads and ends texts with other ids than T5's.
        """
        from tokenizers import normalizers
        from transformers import AutoTokenizer

        try:
            found: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # what a damaged file raises is every library's own
            where = "holds no tokenizer that can be read" if Path(source).is_dir() else "can't be had"
            raise TokenizerMissing(
                f"T5's tokenizer {source} {where} ({type(error).__name__}). Set VECLIP_T5_TOKENIZER to a folder with its"
                f" tokenizer.json, or fill a hub cache where there is a network (`hf download {T5_HUB}"
                " tokenizer.json tokenizer_config.json`) and set HF_HOME to it"
            ) from error
        if not found.is_fast or (found.pad_token_id, found.eos_token_id) != (PAD, T5_END):
            raise TokenizerMissing(
                f"{source} is no tokenizer of T5's: it pads with id {found.pad_token_id} and ends a text with {found.eos_token_id}"
                f" in place of {PAD} and {T5_END}. Set VECLIP_T5_TOKENIZER to a folder with t5-base's, or to {T5_HUB}"
            )
        definition = found.backend_tokenizer
        before = [definition.normalizer] if definition.normalizer is not None else []
        definition.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
        definition.no_truncation()
        definition.no_padding()
        return cls(context_length, definition.to_str())

    @property
    def vocab_size(self) -> int:
        """Rows an embedding needs: 32,100 for T5's own, sentinels included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.definition.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Encoded:
        import torch

        ids_BL = np.full((len(texts), self.context_length), PAD, dtype=np.int64)
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        truncated = 0
        for row, encoding in zip(ids_BL, encodings, strict=True):
            # A text that spells out T5's own marks would end where it says so.
            tokens = [one for one in encoding.ids if one not in (PAD, T5_END)]
            kept = tokens[: self.context_length - 1]
            truncated += len(kept) < len(tokens)
            row[: len(kept)] = kept
            row[len(kept)] = T5_END
        return Encoded(torch.from_numpy(ids_BL), truncated)

    def __call__(self, texts: Sequence[str]) -> "torch.Tensor":
        """Ids_BL, int64."""
        return self.encode(texts).ids_BL

    def save(self, folder: Path) -> None:
        """Write the files that `transformers.AutoTokenizer` reads."""
        from tokenizers import Tokenizer as Definition
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(
            tokenizer_object=Definition.from_str(self.definition),
            pad_token=self._tokenizer.id_to_token(PAD),
            eos_token=self._tokenizer.id_to_token(T5_END),
            unk_token="<unk>",
            model_max_length=self.context_length,
            padding_side="right",
            model_input_names=["input_ids", "attention_mask"],
        ).save_pretrained(folder)
        written = folder / "tokenizer_config.json"
        # The name that transformers 4 knows as well.
        described = json.loads(written.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        written.write_text(json.dumps(described, indent=2) + "\n")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "t5", "context_length": self.context_length, "definition": self.definition}


Tokenizer = BpeTokenizer | SampleTokenizer | T5Tokenizer


def tokenizer_from_json(value: dict[str, Any]) -> Tokenizer:
    if value["kind"] == "bpe":
        return BpeTokenizer(value["context_length"])
    if value["kind"] == "t5":
        return T5Tokenizer(value["context_length"], value["definition"])
    return SampleTokenizer(value["context_length"], tuple(value["byte_pairs"]))


def save_byte_pairs(folder: Path, context_length: int) -> None:
    """Write CLIP's byte pairs as files that `transformers.AutoTokenizer` reads: the same ids, the marks by transformers' names."""
    from transformers import CLIPTokenizer

    start, end = _bpe().all_special_ids
    vocabulary = {token: number for token, number in _bpe().encoder.items() if number not in (start, end)}
    vocabulary |= {"<|startoftext|>": start, "<|endoftext|>": end}
    merges = sorted(_bpe().bpe_ranks, key=_bpe().bpe_ranks.__getitem__)
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
    tokenizer.save_pretrained(folder)


def _padded(rows: Sequence[Sequence[int]], start: int, end: int, context_length: int) -> Encoded:
    import torch

    ids_BL = np.full((len(rows), context_length), PAD, dtype=np.int64)
    truncated = 0
    for row, tokens in zip(ids_BL, rows, strict=True):
        kept = tokens[: context_length - 2]
        truncated += len(kept) < len(tokens)
        row[0] = start
        row[1 : len(kept) + 1] = kept
        row[len(kept) + 1] = end
    return Encoded(torch.from_numpy(ids_BL), truncated)
