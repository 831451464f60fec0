"""What captions are like: lengths, vocabulary, nouns and names, and how much of both inputs they keep."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from veclip_core.captioning.quality import kept_shares
from veclip_core.captioning.words import content_words, is_name, words

TEXTS = ("alt_text", "vec", "vecap")
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.,;:!?]")


@dataclass(frozen=True)
class TextStatistics:
    """Of one kind of text."""

    texts: int
    """Not empty ones."""
    lengths: Mapping[int, int]
    """Words of a text -> how many texts."""
    mean_words: float
    distinct_texts: int
    distinct_words: int
    distinct_nouns: int
    distinct_names: int
    """Proper nouns, by a part-of-speech tagger for English; words of other languages are mostly taken for names."""
    most_used: Sequence[tuple[str, int]]
    """Content words, with how many texts hold them."""


@dataclass(frozen=True)
class CaptionStatistics:
    """Of a sample of captions."""

    rows: int
    by_text: Mapping[str, TextStatistics]
    kept: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """`alt`, `names`, `vec` -> of every fused caption the share of that input's words it keeps."""


def statistics_of(rows: Sequence[Mapping[str, Any]]) -> CaptionStatistics:
    """Over rows of `select`. Some 400 rows a second are tagged."""
    fused = [row for row in rows if row["status"] == "fused"]
    kept: dict[str, list[float]] = {"alt": [], "names": [], "vec": []}
    for row in fused:
        for name, share in kept_shares(row["vecap"], row["alt_text"], row["vec"]).items():
            kept[name].append(share)
    return CaptionStatistics(
        len(rows), {text: _of_texts([row[text] for row in rows if (row[text] or "").strip()]) for text in TEXTS}, kept
    )


def _of_texts(texts: Sequence[str]) -> TextStatistics:
    lengths = Counter(len(words(text)) for text in texts)
    used: Counter[str] = Counter()
    vocabulary: set[str] = set()
    for text in texts:
        vocabulary.update(words(text))
        used.update(set(content_words(text)))
    nouns, names = nouns_and_names(texts)
    return TextStatistics(
        texts=len(texts),
        lengths=dict(sorted(lengths.items())),
        mean_words=round(sum(length * count for length, count in lengths.items()) / len(texts), 2) if texts else 0.0,
        distinct_texts=len(set(texts)),
        distinct_words=len(vocabulary),
        distinct_nouns=len(nouns),
        distinct_names=len(names),
        most_used=used.most_common(12),
    )


def nouns_and_names(texts: Iterable[str]) -> tuple[set[str], set[str]]:
    """Distinct nouns and distinct proper nouns, lower-cased, as the Hannover Tagger's English model sees them."""
    nouns: set[str] = set()
    names: set[str] = set()
    for text in set(texts):
        tokens = _TOKEN.findall(text)
        # The first word's capital says nothing.
        for number, (word, lemma, tag) in enumerate(_tagger().tag_sent(tokens) if tokens else []):
            if tag.startswith("NP") or (tag.startswith("NN") and is_name(word) and number > 0 and not word.isdigit()):
                names.add(word.casefold())
            elif tag.startswith("NN"):
                nouns.add(str(lemma).casefold())
    return nouns, names


@cache
def _tagger() -> Any:
    from HanTa import HanoverTagger

    return HanoverTagger.HanoverTagger("morphmodel_en.pgz")
