"""The choice among captions: frequencies, purity, fallbacks."""

import random
import subprocess
import sys

import pyarrow as pa
import pytest

from veclip_core.mixing.choose import caption_of, choose, draw, is_usable, usable_mask
from veclip_core.training.arms import ARMS
from veclip_core.training.recipe import Recipe

IDS = [f"{number:032x}" for number in range(20_000)]
ROW = {
    "sample_id": IDS[0],
    "alt": "rustic bathroom",
    "vec": "a bathroom with a window",
    "vecap": "a rustic bathroom, lit",
}


@pytest.mark.parametrize(
    "weights", [{"alt": 0.5, "vecap": 0.5}, {"alt": 2, "vec": 1, "vecap": 1}, {"vec": 0.1, "alt": 0.9}]
)
def test_frequencies_follow_the_weights(weights: dict[str, float]) -> None:
    drawn = [choose(3, 1, sample_id, weights) for sample_id in IDS]
    for source, weight in weights.items():
        share = weight / sum(weights.values())
        deviations = abs(drawn.count(source) / len(IDS) - share) / (share * (1 - share) / len(IDS)) ** 0.5
        assert deviations < 4


def test_seeds_and_epochs_draw_independently() -> None:
    weights = {"alt": 0.5, "vecap": 0.5}
    first = [choose(0, 0, sample_id, weights) for sample_id in IDS]
    for seed, epoch in ((0, 1), (1, 0), (0, 10), (10, 0)):
        same = sum(a == choose(seed, epoch, sample_id, weights) for a, sample_id in zip(first, IDS, strict=True))
        assert abs(same / len(IDS) - 0.5) < 4 * 0.5 / len(IDS) ** 0.5


def test_order_of_the_samples_does_not_matter() -> None:
    weights = {"alt": 0.3, "vec": 0.3, "vecap": 0.4}
    shuffled = random.Random(0).sample(IDS, len(IDS))
    assert {s: choose(7, 2, s, weights) for s in IDS} == {s: choose(7, 2, s, weights) for s in shuffled}


def test_another_process_draws_the_same() -> None:
    code = "from veclip_core.mixing.choose import draw;print([draw(7, 2, f'{number:032x}') for number in range(50)])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([draw(7, 2, sample_id) for sample_id in IDS[:50]])


def test_draws_are_pinned() -> None:
    """A change here changes every training ever made: it needs a new identity."""
    assert draw(0, 0, "0" * 32) == 0.06260125514488168


def test_only_weighted_sources_are_drawn() -> None:
    assert {choose(0, 0, sample_id, {"alt": 1.0, "vecap": 0.0}) for sample_id in IDS[:500]} == {"alt"}
    for weights in ({}, {"alt": 0.0}, {"alt": -1.0, "vecap": 2.0}, {"alt": float("nan")}):
        with pytest.raises(ValueError, match="caption weights"):
            choose(0, 0, IDS[0], weights)


@pytest.mark.parametrize(
    ("texts", "weights", "expected"),
    [
        ({}, {"vecap": 1.0}, ("a rustic bathroom, lit", "vecap", False)),
        ({"vecap": "bathroom"}, {"vecap": 1.0}, ("rustic bathroom", "alt", True)),
        ({"vecap": None}, {"vecap": 1.0}, ("rustic bathroom", "alt", True)),
        ({"alt": "Bathroom"}, {"alt": 1.0}, ("Bathroom", "alt", False)),
        ({"alt": " "}, {"alt": 1.0}, ("", "none", True)),
        ({}, {"template": 1.0}, ("rustic bathroom, a bathroom with a window", "template", False)),
        ({"vec": None}, {"template": 1.0}, ("rustic bathroom", "template", False)),
        ({"alt": "Bath", "vec": ""}, {"template": 1.0}, ("Bath", "alt", True)),
        ({"alt": ""}, {"template": 1.0}, ("a bathroom with a window", "template", False)),
        ({"control": "a rustic cat"}, {"control": 1.0}, ("a rustic cat", "control", False)),
        ({}, {"control": 1.0}, ("rustic bathroom", "alt", True)),
        ({"alt": ""}, {"alt": 1.0, "vecap": 1e-12}, ("a rustic bathroom, lit", "vecap", True)),
        ({"alt": "", "vecap": "x"}, {"vecap": 1.0, "vec": 1e-12}, ("a bathroom with a window", "vec", True)),
    ],
)
def test_fallbacks(texts: dict[str, str | None], weights: dict[str, float], expected: tuple[str, str, bool]) -> None:
    assert caption_of({**ROW, **texts}, 0, 0, weights) == expected


def test_mixed_and_its_control_toss_the_same_coins() -> None:
    """They differ in the generated text and in nothing else, also not in when it is drawn."""
    mixed, control = (Recipe(weights=dict(ARMS[name].weights)).weights for name in ("veclip", "control"))
    drawn = [(choose(1, 4, sample_id, mixed), choose(1, 4, sample_id, control)) for sample_id in IDS[:1000]]
    assert set(drawn) == {("alt", "alt"), ("vecap", "control")}


def test_the_arm_of_alt_text_never_sees_a_generated_text() -> None:
    for sample_id in IDS[:200]:
        assert caption_of({**ROW, "sample_id": sample_id, "alt": ""}, 0, 0, {"alt": 1.0, "vecap": 0.0})[0] == ""


def test_a_column_is_judged_as_its_texts_are() -> None:
    spaces = (
        "",
        " ",
        "\t",
        "\x0b",
        "\x1c",
        "\x1f",
        "\x85",
        "\xa0",
        "\u1680",
        "\u2003",
        "\u2028",
        "\u3000",
        "\u200b",
        "\x00",
    )
    texts = [f"{a}{one}{b}{other}{a}" for a in spaces for b in spaces for one in ("", "x", "港") for other in ("", "y")]
    for source in ("alt", "vec", "vecap"):
        found = usable_mask(pa.chunked_array([texts[:50], texts[50:]]), source)
        assert found.tolist() == [is_usable(text, source) for text in texts]
