"""Words as the faithfulness check compares them: case, accents, inflections and compounds do not matter."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# What a fusion may add without adding a fact. Negations, counts, places and sizes are facts and stay out.
_FUNCTION_WORDS = """
    a an the this that these those it its they them their he she his her who which what where when while
    and or but as so than then also both either each some any all other such like
    of in on at by for from to into onto with about
    is are was were be been being has have had having do does can may
"""
# Words of the frame: they say that there is a picture, a name or a colour, not what is in it.
_FRAME_WORDS = """
    image picture illustration drawing drawn depiction sketch artwork clipart clip art graphic design style styled
    show showing shown depict depicting depicted feature featuring featured display displaying displayed
    represent representing include including contain containing portray portraying
    called named titled entitled labeled labelled known
    color colour colored coloured colors colours
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def words(text: str) -> list[str]:
    """The words of `text` in order, casefolded, without accents; digits stand for themselves."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    return WORD.findall(plain.casefold().replace("’", "'"))


def content_words(text: str) -> list[str]:
    """Those of the words that state something."""
    return [word for word in words(text) if word not in FUNCTION_WORDS and stem(word) not in FRAME_STEMS]


def stem(word: str) -> str:
    """A light English stem: plural, possessive, -ed and -ing, so that `slices` and `sliced` meet."""
    word = word.removesuffix("'s").rstrip("'")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and re.search(r"(s|x|z|ch|sh)es$", word):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix in ("ing", "ed"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and re.search(r"[aeiouy]", word[: -len(suffix)]):
            word = re.sub(r"([^aeiouls])\1$", r"\1", word[: -len(suffix)])
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 2 and word.endswith("y") else word


FRAME_STEMS = frozenset(stem(word) for word in _FRAME_WORDS.split())


class Words:
    """The words of one or more texts, to ask whether another word is among them."""

    def __init__(self, *texts: str):
        self.all = [word for text in texts for word in words(text)]
        self.stems = {stem(word) for word in self.all}
        self.squashed = "".join(self.all)

    def __contains__(self, word: str) -> bool:
        """True for an inflection of a word, and for a part or a whole of a compound (`CleanPalm`, `clean palm`)."""
        return stem(word) in self.stems or (len(word) >= 4 and not word.isdigit() and word in self.squashed)


def scripts(text: str) -> set[str]:
    """The scripts of which `text` has at least two letters, by Unicode's names: `LATIN`, `CJK`, `HANGUL`, `CYRILLIC`."""
    counts = Counter(_script(char) for char in unicodedata.normalize("NFKC", text) if char.isalpha())
    return {script for script, count in counts.items() if count > 1}


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]


def is_name(original: str) -> bool:
    """Whether a word as written is a name or a number: it has a capital or a digit."""
    return any(char.isupper() or char.isdigit() for char in original)


def names(text: str) -> list[str]:
    """The names and numbers of `text`, as compared; function words in capitals (`The`) left out."""
    found = []
    for original in WORD.findall(text.replace("_", " ")):
        for word in words(original):
            if is_name(original) and word not in FUNCTION_WORDS and stem(word) not in FRAME_STEMS:
                found.append(word)
    return found
