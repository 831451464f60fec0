"""Faults planted in captions: the check's own error rate can be measured, and the measure can fail."""

from veclip_core.captioning.corruptions import Fused, false_acceptance
from veclip_core.captioning.prompts import fuse_prompt
from veclip_core.captioning.quality import QualityThresholds

ROWS = [
    Fused("Gala apple 3", "a drawing of a red apple, food-fruit, red and green", "A drawing of Gala apple 3 in red and green."),
    Fused("Carte de France", "a drawing of a clapper board, light & video, gray",
          "A gray drawing of the Carte de France with a clapper board."),
    Fused("Wolf by Anna Berg", "a drawing of a dog face, animal-mammal, gray",
          "A drawing of Wolf by Anna Berg with a gray dog face."),
]  # fmt: skip
PROMPTS = [fuse_prompt("fuse-sentence-v2"), fuse_prompt("fuse-title-first-v3")]


def test_every_kind_of_fault_is_planted_and_caught() -> None:
    rates = {rate.fault: rate for rate in false_acceptance(ROWS, PROMPTS)}
    assert set(rates) == {
        "a word of another picture added",
        "a number added",
        "all that only the AltText says dropped",
        "all that only the VeC says dropped",
        "another picture's caption",
        "an example of the prompt",
    }
    assert all(rate.planted >= len(ROWS) for rate in rates.values())
    assert not any(rate.accepted for rate in rates.values()), rates


def test_a_loose_check_is_seen_to_be_one() -> None:
    loose = QualityThresholds(max_added_words=3, min_alt_share=0, min_name_share=0, min_vec_share=0)
    rates = {rate.fault: rate for rate in false_acceptance(ROWS, PROMPTS, loose)}
    assert rates["a number added"].accepted == len(ROWS)
    assert rates["all that only the AltText says dropped"].accepted
