"""Training on a part of the data: which rows it is, and that everything else stays as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.training_world import TINY, write_world
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import recipe_of
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS, EXPERIMENT, FIRST_LOOK
from veclip_core.training.data import Batches, TooFewRows, pictures_for, rows_for, tokenizer_for
from veclip_core.training.loop import train, training_identity
from veclip_core.training.manifest_table import ManifestTable, in_fraction, load_manifest
from veclip_core.training.order import WindowPlan
from veclip_core.training.recipe import RECIPES, Recipe
from veclip_core.training.report import Runtime


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ManifestTable:
    return load_manifest(*write_world(tmp_path_factory.mktemp("world"), 96))


def ids(part: ManifestTable) -> list[str]:
    return [row["sample_id"] for row in part.rows(range(len(part)))]


def test_a_part_is_about_as_large_as_asked_for_and_lies_within_every_larger_one() -> None:
    samples = [f"{number:032x}" for number in range(20_000)]
    smaller: set[str] = set()
    for share in (0.1, 0.25, 0.5, 0.9, 1.0):
        part = {one for one in samples if in_fraction(one, share)}
        assert len(part) == pytest.approx(share * len(samples), rel=0.03)
        assert smaller < part
        smaller = part
    assert smaller == set(samples)


def test_a_part_is_the_same_in_any_order_of_the_rows(manifest: ManifestTable) -> None:
    order = np.random.default_rng(0).permutation(96)
    shuffled = ManifestTable(manifest.source_uri, manifest.table.take(pa.array(order)), "shuffled")
    part = manifest.fraction(0.5)
    assert 30 < len(part) < 66
    assert ids(part) == [name for name in ids(manifest) if in_fraction(name, 0.5)], "in the manifest's order"
    assert set(ids(shuffled.fraction(0.5))) == set(ids(part))
    assert set(ids(manifest.fraction(0.25))) < set(ids(part))
    assert manifest.fraction(1.0) is manifest


def test_all_of_the_data_is_the_training_it_was_and_a_part_is_another(manifest: ManifestTable) -> None:
    assert Recipe().identity() == Recipe(data_fraction=1.0).identity()
    assert Recipe().identity().startswith("3bf4dfa50488c15b"), "as before there were fractions"
    identities = {training_identity(TINY.model_copy(update={"data_fraction": f}), manifest) for f in (0.25, 0.5, 1.0)}
    assert len(identities) == 3
    assert training_identity(TINY, manifest) in identities
    for wrong in (0.0, -0.5, 1.01):
        with pytest.raises(ValueError, match="data_fraction"):
            Recipe(data_fraction=wrong)


@pytest.mark.parametrize("order", ["rows", "windows"])
def test_every_row_of_the_part_and_no_other_is_read(manifest: ManifestTable, tmp_path: Path, order: str) -> None:
    recipe = Recipe(
        **{**TINY.model_dump(), "order": order, "data_fraction": 0.5, "batch_size": 8, "weights": {"alt": 1.0}}
    )
    part = rows_for(recipe, manifest)
    wanted = {row["alt"]: row for row in part.rows(range(len(part)))}
    runtimes = {"decoded": Runtime(cache_folder=tmp_path), "streamed": Runtime()}
    read = {
        name: Batches.of(part, pictures_for(recipe, part, runtime), tokenizer_for(recipe, part), recipe)
        for name, runtime in runtimes.items()
    }
    assert isinstance(read["decoded"].plan, WindowPlan) == (order == "windows")
    steps = 4 * read["decoded"].plan.steps_per_epoch
    texts = [text for step in range(steps) for text in read["decoded"].at(step).texts]
    assert set(texts) == wanted.keys()
    for step in (0, steps - 1):
        decoded, streamed = (read[name].at(step) for name in ("decoded", "streamed"))
        assert decoded.texts == streamed.texts
        assert np.array_equal(decoded.images_BCHW, streamed.images_BCHW), "the pictures of the part's rows"
    whole = pictures_for(recipe, manifest, runtimes["decoded"])
    places = [ids(manifest).index(row["sample_id"]) for row in wanted.values()]
    assert np.array_equal(whole.read(places)[0], read["decoded"].pictures.read(range(len(part)))[0])
    assert len(list(tmp_path.glob("*.npy"))) == 1, "decoded once for all of the data and for its parts"


def test_a_mixtures_manifests_are_each_cut(manifest: ManifestTable) -> None:
    mixed = replace(manifest, sources=((32, 32), (64, 128)))
    part = mixed.fraction(0.5)
    assert part.kept is not None
    first, second = (int((part.kept < 32).sum()), int((part.kept >= 32).sum()))
    assert part.sources == ((first, first), (second, 2 * second)), "of one each row once an epoch, of the other twice"
    tiny = replace(manifest, sources=((1, 1), (95, 95))).fraction(0.5)
    assert sum(rows for rows, _ in tiny.sources) == len(tiny)


def test_the_arms_of_a_fraction_read_the_same_rows_with_the_same_compute() -> None:
    chain = Chain(Settings(root="unused", mlflow="off"), SCALES["sample"])
    for share, names in {0.25: ("clip_25pct", "veclip_25pct"), 0.5: ("clip_50pct", "veclip_50pct")}.items():
        clip, veclip = (recipe_of(chain, name, 0, {"data_fraction": 1.0, "seed": 7}) for name in names)
        assert clip.data_fraction == veclip.data_fraction == share, "what an arm reads can't be overridden"
        assert clip.seed == veclip.seed == 0
        for part, whole in ((clip, "clip"), (veclip, "veclip")):
            assert part.model_copy(update={"data_fraction": 1.0}) == recipe_of(chain, whole, 0)
    shares = {name: ARMS[name].weights.get("vecap", 0) for name in ("clip", "mix_25", "veclip", "mix_75", "vecap_only")}
    assert list(shares.values()) == [0, 0.25, 0.5, 0.75, 1]
    assert all(sum(arm.weights.values()) == 1 for arm in ARMS.values())


def test_a_new_arm_joins_no_comparison_by_itself() -> None:
    assert EXPERIMENT.arms == ("clip", "veclip", "control", "vecap_only", "template_only", "vec_only")
    assert FIRST_LOOK.arms == ("clip", "veclip")


def test_what_was_read_is_counted_and_too_little_is_refused(manifest: ManifestTable, tmp_path: Path) -> None:
    recipe = TINY.model_copy(update={"data_fraction": 0.5, "steps": 3})
    report = train(recipe, manifest, tmp_path / "half", runtime=Runtime(progress_bar=False))
    assert report.rows == len(manifest.fraction(0.5))
    assert report.samples == 3 * TINY.batch_size
    whole = train(
        TINY.model_copy(update={"steps": 3}), manifest, tmp_path / "whole", runtime=Runtime(progress_bar=False)
    )
    assert whole.rows == 96
    assert (whole.parameters, whole.vocab_size) == (report.parameters, report.vocab_size), "one vocabulary"
    with pytest.raises(
        TooFewRows, match=r"a fraction of 0.1 of the manifest's 96 rows has \d+, fewer than a batch of 16"
    ):
        train(recipe.model_copy(update={"data_fraction": 0.1}), manifest, tmp_path / "none")
    assert RECIPES["sample"].data_fraction == 1
