import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.unit.small_world import real_packages, small_cache  # noqa: F401  (fixtures)
from veclip_core.captioning.colours import dominant_colours
from veclip_core.captioning.concept_fit import fit_concepts, measure_concepts
from veclip_core.captioning.concept_model import ConceptModel, calibrated_sharpness, fit_whitened_centroids, softmax
from veclip_core.captioning.concept_words import plain_name, sentence, with_article
from veclip_core.captioning.engines.concepts import ConceptsConfig, ConceptsEngine, open_concepts
from veclip_core.sources.emoji_concepts import bare_hexcode, concept_split, read_concepts
from veclip_core.sources.noto import noto_pictures
from veclip_core.sources.openmoji import OpenMojiSet, build_openmoji
from veclip_core.sources.sample_packages import PackageReport, SampleWorldError, fetch_packages


@pytest.fixture(scope="module")
def fitted(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("concepts")
    fit_concepts(small_cache, folder)
    return folder


@pytest.fixture(scope="module")
def openmoji(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> OpenMojiSet:  # noqa: F811
    return build_openmoji(small_cache, tmp_path_factory.mktemp("openmoji"))


def test_concepts_of_unicode_without_flags_and_skin_tones(real_packages: PackageReport) -> None:  # noqa: F811
    concepts = read_concepts(real_packages.emoji_names)
    assert len(concepts) == len({concept.hexcode for concept in concepts}) == 1601
    assert not any("flag:" in concept.name or "skin tone" in concept.name for concept in concepts)
    astronaut = next(concept for concept in concepts if concept.name == "woman astronaut")
    assert (astronaut.hexcode, astronaut.group, astronaut.subgroup) == (
        "1F469-200D-1F680",
        "People & Body",
        "person-role",
    )


def test_split_holds_out_about_a_fifth_and_depends_on_the_concept_alone(real_packages: PackageReport) -> None:  # noqa: F811
    concepts = read_concepts(real_packages.emoji_names)
    unseen = [concept.hexcode for concept in concepts if concept.split == "unseen"]
    assert 0.17 < len(unseen) / len(concepts) < 0.23
    assert all(concept_split(hexcode) == "unseen" for hexcode in reversed(unseen))


def test_hexcodes_agree_whoever_spells_them() -> None:
    assert bare_hexcode("263A FE0F") == bare_hexcode("263a") == "263A"
    assert bare_hexcode("2764-FE0F-200D-1F525") == "2764-200D-1F525"


def test_noto_draws_every_concept_on_white(real_packages: PackageReport) -> None:  # noqa: F811
    drawn = noto_pictures(real_packages.noto_font, real_packages.emoji_names)
    assert len(drawn) == 1601
    apple = next(picture for concept, picture in drawn if concept.name == "red apple")
    assert apple.mode == "RGB"
    assert apple.getpixel((0, 0)) == (255, 255, 255)
    assert dominant_colours(apple)[0] == "red"


def test_openmoji_is_what_noto_draws_and_is_made_once(openmoji: OpenMojiSet, small_cache: Path) -> None:  # noqa: F811
    packages = fetch_packages(small_cache)
    noto = [concept for concept, _ in noto_pictures(packages.noto_font, packages.emoji_names)]
    assert [(item.hexcode, item.caption, item.concept_split) for item in openmoji.items] == [
        (concept.hexcode, concept.name, concept.split) for concept in noto
    ]
    again = build_openmoji(small_cache, openmoji.items[0].file.parents[2])
    assert again.digest == openmoji.digest
    assert again.seconds == 0.0
    picture = openmoji.picture(openmoji.items[0])
    assert picture.size == (256, 256)
    assert len(np.unique(np.asarray(picture))) > 10


def test_fitted_on_noto_without_the_unseen_concepts(fitted: Path) -> None:
    model = ConceptModel.load(fitted)
    assert model.concepts
    assert {concept.split for concept in model.concepts} == {"fitted"}
    assert [package["name"] for package in model.about["fitted_on"]] == ["fonts-noto-color-emoji", "unicode-data"]


def test_right_far_above_chance_on_an_unseen_artist(fitted: Path, openmoji: OpenMojiSet) -> None:
    measured = measure_concepts(fitted, openmoji)
    assert measured.fitted_pictures == measured.concepts
    assert measured.fitted_recall[1] > 20 * measured.chance
    assert measured.fitted_recall[1] <= measured.fitted_recall[5] <= measured.fitted_recall[10] <= 1
    assert measured.fitted_subgroup >= measured.fitted_recall[1]
    assert measured.unseen_pictures > 0


def test_descriptions_are_sentences_and_repeat_exactly(fitted: Path, openmoji: OpenMojiSet) -> None:
    pictures = [openmoji.picture(item) for item in openmoji.items[:40]]
    with open_concepts(ConceptsConfig(), fitted) as engine:
        first = engine.describe(pictures)
        second = engine.describe(pictures)
        assert engine.describe([]) == []
        assert engine.model_id == f"concepts-noto-efficientnet-lite0/{ConceptsConfig().identity()[:8]}"
    assert [d.text for d in first] == [d.text for d in second]
    for description in first:
        assert description.text.startswith("a drawing of ")
        assert len(json.loads(json.dumps(description.detail))["concepts"]) == 5


def test_descriptions_are_the_same_in_another_company(fitted: Path, openmoji: OpenMojiSet) -> None:
    pictures = [openmoji.picture(item) for item in openmoji.items[:12]]
    with open_concepts(ConceptsConfig(), fitted) as engine:
        together = [d.text for d in engine.describe(pictures)]
        alone = [engine.describe([picture])[0].text for picture in pictures]
    assert together == alone


def test_a_noto_drawing_is_called_by_its_name(fitted: Path, small_cache: Path) -> None:  # noqa: F811
    packages = fetch_packages(small_cache)
    drawn = [d for d in noto_pictures(packages.noto_font, packages.emoji_names) if d[0].split == "fitted"]
    with open_concepts(ConceptsConfig(), fitted) as engine:
        said = engine.describe([picture for _, picture in drawn])
    right = [s.detail["concepts"][0][0] == concept.name for s, (concept, _) in zip(said, drawn, strict=True)]
    assert np.mean(right) > 0.95


def test_any_shape_and_mode_is_described(fitted: Path) -> None:
    pictures = [
        Image.new("RGB", (1, 1), "red"),
        Image.new("L", (300, 2)),
        Image.new("RGBA", (40, 90), (0, 0, 0, 0)),
        Image.new("P", (64, 64)),
    ]
    with open_concepts(ConceptsConfig(), fitted) as engine:
        assert all(description.text for description in engine.describe(pictures))


def test_fitting_again_is_free_and_another_configuration_is_refused(fitted: Path, small_cache: Path) -> None:  # noqa: F811
    assert fit_concepts(small_cache, fitted).seconds == 0.0
    with pytest.raises(SampleWorldError, match="another configuration"):
        ConceptsEngine(ConceptsConfig(shrinkage=0.5), fitted)
    with pytest.raises(SampleWorldError, match="veclip sample fetch"):
        ConceptsEngine(ConceptsConfig(), fitted / "nowhere")


def test_whitening_ignores_what_differs_within_a_concept() -> None:
    generator = np.random.default_rng(0)
    concepts = generator.normal(size=(1, 30, 8)).astype(np.float32)
    noise = np.zeros((2, 30, 8), np.float32)
    noise[:, :, 0] = generator.normal(size=(2, 30)) * 20
    mean, whitening, centroids = fit_whitened_centroids(concepts + noise, shrinkage=0.01)
    queries = concepts[0].copy()
    queries[:, 0] += generator.normal(size=30) * 20
    white = (queries - mean) @ whitening
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    assert ((white @ centroids.T).argmax(1) == np.arange(30)).mean() > 0.9


def test_sharpness_is_higher_where_answers_are_surer() -> None:
    generator = np.random.default_rng(0)
    truth = np.arange(50)
    sure = 0.2 * np.eye(50) + generator.normal(size=(50, 50)) * 0.02
    unsure = 0.2 * np.eye(50) + generator.normal(size=(50, 50)) * 0.2
    assert calibrated_sharpness(sure, truth) > calibrated_sharpness(unsure, truth)
    assert np.allclose(softmax(sure).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red apple", "a red apple"),
        ("orange book", "an orange book"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("euro banknote", "a euro banknote"),
        ("grapes", "grapes"),
        ("octopus", "an octopus"),
        ("dress", "a dress"),
        ("butterfly", "a butterfly"),
        ("twelve o’clock", "twelve o'clock"),
        ("Aries", "Aries"),
        ("woman: red hair", "a woman with red hair"),
        ("man: bald", "a bald man"),
        ("family: man, woman, boy", "a family of man, woman and boy"),
        ("keycap: 5", "a keycap 5"),
        ("AB button (blood type)", "a blood type AB button"),
        ("grinning face", "a grinning face"),
    ],
)
def test_names_read_as_english(name: str, said: str) -> None:
    assert with_article(plain_name(name)) == said


def test_sentence_holds_what_is_known() -> None:
    assert (
        sentence(["tulip", "rose"], "plant-flower", ["red", "green"], None)
        == "a drawing of a tulip or a rose, a flower, a plant, red and green"
    )
    assert sentence(["sailboat"], "transport-water", ["blue"], "schooner").endswith("blue, looking like a schooner")


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((220, 30, 30), "red"),
        ((250, 150, 20), "orange"),
        ((250, 230, 60), "yellow"),
        ((40, 160, 60), "green"),
        ((50, 100, 220), "blue"),
        ((130, 60, 190), "purple"),
        ((245, 120, 190), "pink"),
        ((110, 65, 35), "brown"),
        ((20, 20, 20), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
    ],
)
def test_colours_have_their_names(colour: tuple[int, int, int], name: str) -> None:
    picture = Image.new("RGB", (80, 80), "white")
    ImageDraw.Draw(picture).rectangle((20, 20, 60, 60), fill=colour)
    assert dominant_colours(picture) == [name]


def test_a_small_share_of_a_second_colour_is_not_told() -> None:
    picture = Image.new("RGB", (100, 100), (40, 160, 60))
    picture.paste((220, 30, 30), (0, 0, 100, 15))
    assert dominant_colours(picture) == ["green"]
    picture.paste((220, 30, 30), (0, 0, 100, 40))
    assert dominant_colours(picture) == ["green", "red"]


def test_reports_are_frozen(fitted: Path, openmoji: OpenMojiSet) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        openmoji.items[0].caption = "x"  # type: ignore[misc]
