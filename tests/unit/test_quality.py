"""The check of fused captions: each reason, and its error rates on planted corruptions."""

import pytest

from veclip_core.captioning.prompts import fuse_prompt
from veclip_core.captioning.quality import QualityThresholds, judge

ALT = "Gala apple by Jane Doe 2004"
VEC = "a drawing of a red apple or a tomato, food-fruit, red and green"
LONG_VEC = "The bathroom is well-decorated with a window, sink, toilet, and shelves, creating a comfortable and inviting space."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A red and green drawing of a Gala apple by Jane Doe 2004.", None),
        ("A drawing of a Gala apple or a tomato by Jane Doe 2004 in red and green.", None),
        ("", "empty"),
        (" -- ", "empty"),
        ("Gala apple", "too_short"),
        ("apple " * 60, "too_long"),
        ("I'm sorry, I cannot see the red Gala apple by Jane Doe 2004.", "refusal"),
        ("Rephrase the following two sentences into one short sentence.", "echo"),
        ("Title: Gala apple by Jane Doe 2004, red and green", "echo"),
        ("The image shows a red and green Gala apple by Jane Doe 2004.", "of_the_image"),
        (f"{ALT}, {VEC}", "concatenation"),
        (f"{ALT}, a red apple or a tomato, food-fruit, red and green.", "concatenation"),
        ("A red apple, red apple, red apple and Gala apple by Jane Doe 2004.", "repetition"),
        ("A red Gala apple by Jane Doe 2004 on a wooden table, in green.", "unfaithful"),
        ("A red and green Gala apple by Jane Doe 2005.", "unfaithful"),
        ("A red and green Gala apple without fruit by Jane Doe 2004.", "unfaithful"),
        ("A red and green apple and a tomato by Jane Doe 2004, Gala fruit.", "unfaithful"),
        ("A red and green drawing of an apple, a food fruit.", "drops_alt"),
        ("A red and green Gala apple by Jane Doe.", None),
        ("A Gala apple by Jane Doe 2004 in a drawing.", "drops_vec"),
    ],
)
def test_reasons(text: str, reason: str | None):
    assert judge(text, ALT, VEC) == reason


def test_published_example_stands():
    fused = (
        "The rustic bathroom style features a well-decorated space with a window, sink, toilet, and shelves, "
        "creating comfort and charm."
    )
    # `charm` is a word that neither input has: the paper's own fusion adds a little.
    assert judge(fused, "Rustic bathroom style.", LONG_VEC) == "unfaithful"
    assert judge(fused, "Rustic bathroom style.", LONG_VEC, thresholds=QualityThresholds(max_added_words=1)) is None


def test_cut_off_answer_is_rejected_whatever_it_says():
    good = "A red and green drawing of a Gala apple by Jane Doe 2004."
    assert judge(good, ALT, VEC, "length") == "truncated"
    assert judge(good, ALT, VEC, "stop") is None


def test_echo_of_an_example_is_named_one():
    own = fuse_prompt("fuse-sentence-v2").own_texts
    text = "A drawing of Antique Lamp 3 by John Smith with a light bulb in brown."
    assert judge(text, ALT, VEC, "stop", None, own) == "echo"
    # The same words are no echo where they are the sample's own.
    assert (
        judge(text, "Antique Lamp 3 by John Smith", "a drawing of a light bulb, household, brown", "stop", None, own)
        is None
    )


@pytest.mark.parametrize(
    ("alt_text", "text"),
    [
        ("CleanPalm", "A drawing of a clean palm with a purple computer."),
        ("Carte de France", "A purple drawing of the Carte de France with a computer."),
        ("slices", "A sliced purple computer drawing"),
        ("Éléphant", "A drawing of an elephant with a purple computer."),
        ("日本の地図", "A drawing of 日本の地図 with a computer in purple."),
    ],
)
def test_inflections_compounds_and_accents_are_no_new_facts(alt_text: str, text: str):
    assert judge(text, alt_text, "a drawing of a computer, computer, purple") is None


# Faithful fusions, written by hand, on which corruptions are planted.
FAITHFUL = [
    ("Carte de France", "a drawing of a clapper board, light & video, gray and orange",
     "A gray and orange drawing of the Carte de France with a clapper board."),
    ("Simple arrows", "a drawing of a BACK arrow, arrow, black", "Simple arrows drawn as a black BACK arrow."),
    ("kenya", "a drawing of a globe showing Europe-Africa or a world map, place-map, black and blue",
     "A black and blue map of Kenya, with a globe showing Europe-Africa or a world map."),
    ("Traffic Light", "a drawing of a vertical traffic light, transport-ground, red and green",
     "A vertical Traffic Light in red and green."),
    ("Wolf by Anna Berg, 1999", "a drawing of a wolf or a dog face, animal-mammal, gray",
     "A gray drawing of a wolf, an animal, by Anna Berg, 1999."),
    ("fire engine 7", "a drawing of a fire engine, transport-ground, red and white",
     "A red and white fire engine 7 for ground transport."),
    ("old house", "a drawing of a derelict house or a castle, place-building, brown",
     "An old, brown and derelict house, a building."),
    ("Happy Birthday Tom!", "a drawing of a birthday cake, food-sweet, pink and yellow",
     "A pink and yellow birthday cake with Happy Birthday Tom."),
    ("Pomodori", "a drawing of a tomato, food-vegetable, red", "Pomodori as a red tomato, a vegetable."),
    ("SVG Gradient Collection by Alan Horkan", "a drawing of a rainbow, sky & weather, blue and pink",
     "A blue and pink rainbow from the SVG Gradient Collection by Alan Horkan."),
    ("Rustic bathroom style.", LONG_VEC,
     "A rustic style bathroom, comfortable and well-decorated, with a window, sink, toilet and shelves."),
    ("Golden Gate Bridge at night", "A long bridge spans dark water under a cloudy sky, with city lights behind it.",
     "The long Golden Gate Bridge at night spans dark water under a cloudy sky."),
]  # fmt: skip
ADDED = ["on a wooden table", "with two children", "in Paris", "from 1850", "wearing a hat", "in the snow", "without colour",
         "next to a lake", "and a purple dragon", "made of glass"]  # fmt: skip


def _dropped(alt_text: str, vec: str, text: str) -> list[str]:
    """Fusions that lost one side."""
    return [f"A {vec.removeprefix('a ')}"[:200], f"A picture called {alt_text}", "A drawing in black and white."]


def test_false_acceptance_and_false_rejection_on_planted_corruptions():
    own = fuse_prompt("fuse-sentence-v2").own_texts
    rejected = [row for row in FAITHFUL if judge(row[2], row[0], row[1], "stop", None, own) is not None]
    corrupt: dict[str, list[tuple[str, str, str]]] = {"added": [], "dropped": [], "echo": [], "number": []}
    for alt_text, vec, text in FAITHFUL:
        corrupt["added"] += [(alt_text, vec, f"{text.rstrip('.')} {fact}.") for fact in ADDED]
        corrupt["dropped"] += [(alt_text, vec, lost) for lost in _dropped(alt_text, vec, text)]
        corrupt["echo"] += [(alt_text, vec, shown) for shown in own if shown.strip()]
        corrupt["number"] += [(alt_text, vec, f"{text.rstrip('.')} 12.")]
    accepted = {
        kind: sum(judge(text, alt, vec, "stop", None, own) is None for alt, vec, text in rows) / len(rows)
        for kind, rows in corrupt.items()
    }
    assert len(rejected) / len(FAITHFUL) <= 0.10, rejected
    assert accepted["added"] <= 0.03, accepted
    assert accepted["dropped"] <= 0.06, accepted
    assert accepted["echo"] == 0, accepted
    assert accepted["number"] == 0, accepted


def test_what_the_check_is_blind_to():
    """Words put together wrongly pass: known, and said in the module's docstring."""
    assert judge("A green apple and a red pear, Gala.", "Gala red apple", "a drawing of a green pear, fruit") is None
