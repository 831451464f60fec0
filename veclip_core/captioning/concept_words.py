"""How a recognised concept is put into plain English: names, articles, kinds."""

import re
from collections.abc import Sequence

_KINDS = {
    "face-smiling": "a smiling face",
    "face-affection": "an affectionate face",
    "face-tongue": "a face with its tongue out",
    "face-hand": "a face with hands",
    "face-neutral-skeptical": "a neutral or skeptical face",
    "face-sleepy": "a sleepy face",
    "face-unwell": "an unwell face",
    "face-hat": "a face with a hat",
    "face-glasses": "a face with glasses",
    "face-concerned": "a concerned face",
    "face-negative": "a negative face",
    "face-costume": "a costume face",
    "cat-face": "a cat face",
    "monkey-face": "a monkey face",
    "emotion": "a symbol of emotion",
    "hand-fingers-open": "a hand with open fingers",
    "hand-fingers-partial": "a hand with fingers partly open",
    "hand-single-finger": "a hand with a single finger",
    "hand-fingers-closed": "a hand with closed fingers",
    "hands": "hands",
    "hand-prop": "a hand holding something",
    "body-parts": "a part of the body",
    "person-gesture": "a person making a gesture",
    "person-role": "a person in a role",
    "person-fantasy": "a fantasy person",
    "person-activity": "a person in an activity",
    "person-sport": "a person doing sport",
    "person-resting": "a person resting",
    "person-symbol": "a symbol of a person",
    "animal-mammal": "a mammal, an animal",
    "animal-bird": "a bird, an animal",
    "animal-amphibian": "an amphibian, an animal",
    "animal-reptile": "a reptile, an animal",
    "animal-marine": "a marine animal",
    "animal-bug": "a bug, an animal",
    "plant-flower": "a flower, a plant",
    "plant-other": "a plant",
    "food-fruit": "fruit, food",
    "food-vegetable": "a vegetable, food",
    "food-prepared": "prepared food",
    "food-asian": "asian food",
    "food-marine": "marine food",
    "food-sweet": "sweet food",
    "dishware": "dishware",
    "place-map": "a map of a place",
    "place-geographic": "a geographic place",
    "place-building": "a building, a place",
    "place-religious": "a religious place",
    "place-other": "a place",
    "transport-ground": "ground transport",
    "transport-water": "water transport",
    "transport-air": "air transport",
    "hotel": "a thing in a hotel",
    "time": "time",
    "sky & weather": "sky and weather",
    "award-medal": "an award or medal",
    "sport": "sport",
    "arts & crafts": "arts and crafts",
    "clothing": "clothing",
    "sound": "sound",
    "music": "music",
    "light & video": "light and video",
    "book-paper": "a book or paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing",
    "office": "a thing in an office",
    "science": "science",
    "medical": "a medical thing",
    "household": "a household thing",
    "other-object": "an object",
    "transport-sign": "a transport sign",
    "religion": "a symbol of religion",
    "zodiac": "a zodiac sign",
    "av-symbol": "an audio or video symbol",
    "gender": "a gender symbol",
    "math": "a math symbol",
    "punctuation": "punctuation",
    "currency": "a currency symbol",
    "other-symbol": "a symbol",
    "alphanum": "letters or numbers",
    "geometric": "a geometric shape",
}
_NO_ARTICLE = re.compile(
    r"^((people|men|women|mx|Mrs|Santa|mount|ginger|bacon|bread|broccoli|butter|garlic|popcorn|salt|sushi|spaghetti|sake|fog"
    r"|luggage|clothes|input|multiply|plus|minus|divide|infinity|poultry|thread|yarn|rolling|locked|unlocked"
    r"|star-struck|ice cream|soft ice|shaved ice|cooked rice|curry rice|dna|footprints|foggy|litter|fork|hammer and"
    r"|bow and|sunrise|sunset|cityscape|night|no|non-potable|menorah)\b|(ice|[A-Z][a-z]+)$)"
)
_CLOCK = re.compile(r"o'clock|-thirty$")
_PLURAL = re.compile(r"[^su']s$|ches$|oes$")
_SINGULAR_S = re.compile(r"(lens|bus|rhinoceros|Americas|glass|compass|dress|axis|tennis|canvas|chess|gas)$")
_AN = re.compile(r"^(?:[aAiI]|[oO](?!ne\b)|[eE](?!ur|we\b)|u(?!ni|se|ti)|hour|SOS|x-|X-|NG\b|8|11|18)")


def plain_name(name: str) -> str:
    """A Unicode short name as one would say it: "person: red hair" -> "person with red hair"."""
    name = name.replace("’", "'").replace("“", "").replace("”", "").replace("!", "")
    head, colon, rest = name.partition(": ")
    if not colon:
        match = re.fullmatch(r"(.+) button \((.+)\)", name)
        return f"{match[2]} {match[1]} button" if match else name
    if head in ("family", "kiss", "couple with heart"):
        *first, last = rest.split(", ")
        return f"{head} of {', '.join(first)} and {last}" if first else f"{head} of {last}"
    if head == "keycap":
        return f"keycap {rest}"
    return f"{rest} {head}" if rest == "bald" else f"{head} with {rest}"


def with_article(name: str) -> str:
    """ "an apple", "a rocket", "grapes"."""
    head = name.split(" with ")[0].split(" of ")[0].split(" holding ")[0].split(" in ")[0]
    plural = _PLURAL.search(head) is not None and _SINGULAR_S.search(head) is None
    if plural or _CLOCK.search(name) or _NO_ARTICLE.match(name):
        return name
    return f"{'an' if _AN.match(name) else 'a'} {name}"


def kind_of(subgroup: str) -> str:
    """What a subgroup's members are: "animal-bug" -> "a bug, an animal"."""
    return _KINDS.get(subgroup) or with_article(subgroup.replace("-", " ").replace("&", "and"))


def sentence(names: Sequence[str], subgroup: str, colours: Sequence[str], photo_class: str | None) -> str:
    """The description: `a drawing of a rose or a tulip, a flower, a plant, red and green`."""
    said = " or ".join(with_article(plain_name(name)) for name in names)
    kind = kind_of(subgroup)
    pieces = [f"a drawing of {said}"]
    if kind not in said:
        pieces.append(kind)
    pieces.append(" and ".join(colours))
    if photo_class:
        pieces.append(f"looking like {with_article(photo_class)}")
    return ", ".join(pieces)
