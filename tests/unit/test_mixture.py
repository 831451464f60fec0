"""Manifests mixed by weight: what is read how often, and what can't be mixed."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.training_world import TINY, write_world
from veclip_core.mixing.mixture import Mixture, MixtureError, mixture_of, read_mixture, write_mixture
from veclip_core.training.data import Batches, tokenizer_for
from veclip_core.training.manifest_table import ColumnsMissing, load_manifest, load_mixture
from veclip_core.training.order import RowPlan, WindowPlan
from veclip_core.training.pictures import PictureCache, StreamedPictures


def manifest(root: Path, count: int, seed: int, columns: tuple[str, ...] = ("alt", "vec", "vecap")) -> str:
    source, paths = write_world(root, count=count, seed=seed)
    digest = load_manifest(source, paths).digest
    told = {"digest": digest, "rows": count, "columns": list(columns), "files": paths, "tars_relative_to": source}
    (root / "m.manifest.json").write_text(json.dumps(told))
    return str(root / "m.manifest.json")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("mixed")
    return manifest(root / "dfn", 20, 1), manifest(root / "vecap", 48, 2)


def test_the_digest_is_of_rows_and_weights_in_any_order(manifests: tuple[str, str]) -> None:
    one, other = manifests
    found = mixture_of({one: 1.0, other: 0.5})
    assert found == mixture_of({other: 0.5, one: 1.0})
    assert found.rows_per_epoch == 20 + 24
    assert found.digest != mixture_of({one: 0.5, other: 1.0}).digest


def test_a_mixture_is_kept_and_found(tmp_path: Path, manifests: tuple[str, str]) -> None:
    assert read_mixture(str(tmp_path), "3m") is None
    made = mixture_of(dict.fromkeys(manifests, 1.0))
    assert Path(write_mixture(str(tmp_path), "3m", made)).exists()
    assert read_mixture(str(tmp_path), "3m") == made


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 0.001])
def test_weights_that_are_none_are_said(manifests: tuple[str, str], weight: float) -> None:
    with pytest.raises(MixtureError, match="weight"):
        mixture_of({manifests[0]: weight})


def test_what_is_no_manifest_is_said(tmp_path: Path, manifests: tuple[str, str]) -> None:
    with pytest.raises(MixtureError, match="no manifest at"):
        mixture_of({str(tmp_path / "none.json"): 1.0})
    (tmp_path / "odd.json").write_text('{"rows": 3}')
    with pytest.raises(MixtureError, match="no manifest's JSON"):
        mixture_of({str(tmp_path / "odd.json"): 1.0})
    with pytest.raises(MixtureError, match="needs manifests"):
        mixture_of({})
    copy = tmp_path / "copy.json"
    copy.write_text(Path(manifests[0]).read_text())
    with pytest.raises(MixtureError, match="twice"):
        mixture_of({manifests[0]: 1.0, str(copy): 2.0})


def test_a_manifest_made_anew_since_is_not_read(tmp_path: Path) -> None:
    uri = manifest(tmp_path / "a", 8, 3)
    made = mixture_of({uri: 1.0})
    told = json.loads(Path(uri).read_text())
    Path(uri).write_text(json.dumps(told | {"digest": "another"}))
    with pytest.raises(MixtureError, match="make the mixture again"):
        load_mixture(made)


def by_source(made: Mixture, rows: np.ndarray) -> dict[str, Counter[int]]:
    """Manifest to how often each of its rows is read."""
    found, first = {}, 0
    for source in made.sources:
        inside = rows[(rows >= first) & (rows < first + source.rows)] - first
        found[source.manifest] = Counter(inside.tolist())
        first += source.rows
    return found


@pytest.mark.parametrize("plan_class", [RowPlan, WindowPlan])
def test_rows_are_read_as_often_as_their_weight_says(
    manifests: tuple[str, str], plan_class: type[RowPlan | WindowPlan]
) -> None:
    once, often = manifests
    made = mixture_of({once: 0.75, often: 2.0})
    table = load_mixture(made)
    assert len(table) == 68
    plan = plan_class(1, 7, table.sources)
    steps = [
        [plan.share(epoch * plan.steps_per_epoch + n, 0, 1) for n in range(plan.steps_per_epoch)] for epoch in range(4)
    ]
    epochs = [np.concatenate([rows for _, rows, _ in epoch]) for epoch in steps]
    times = [(int(rows[0]), int(before[0])) for epoch in steps for _, rows, before in epoch]
    assert len(set(times)) == len(times), "each time that a row is read its caption is drawn anew"
    for epoch in epochs:
        read = by_source(made, epoch)
        assert read[once].total() == 15
        assert max(read[once].values()) <= 2, "where one pass ends and the next begins"
        assert set(read[often].values()) == {2}, "every row twice"
    assert set(by_source(made, np.concatenate(epochs))[once].values()) == {3}, "4 epochs of three quarters"
    assert not np.array_equal(epochs[0], epochs[1])


def test_pictures_and_texts_come_from_their_own_manifests(tmp_path: Path, manifests: tuple[str, str]) -> None:
    made = mixture_of(dict.fromkeys(manifests, 1.0))
    whole, mapped = load_mixture(made), load_mixture(made, tmp_path / "cache")
    assert mapped.table.equals(whole.table)
    alone = [load_manifest(str(Path(source.manifest).parent), json.loads(Path(source.manifest).read_text())["files"])
             for source in made.sources]  # fmt: skip
    first = len(alone[0])
    streamed = StreamedPictures(whole, 36, "pad").read([0, first, len(whole) - 1])[0]
    expected = [StreamedPictures(table, 36, "pad").read([row])[0][0]
                for table, row in ((alone[0], 0), (alone[1], 0), (alone[1], len(alone[1]) - 1))]  # fmt: skip
    assert np.array_equal(streamed, np.stack(expected))
    cached = PictureCache.open(whole, 36, "pad", tmp_path / "pictures")
    assert np.array_equal(cached.read([0, first, len(whole) - 1])[0], streamed)
    assert whole.rows([first])[0]["alt"] == alone[1].rows([0])[0]["alt"]


def test_a_further_column_that_one_manifest_lacks_is_empty_there(tmp_path: Path, manifests: tuple[str, str]) -> None:
    styled = Path(manifest(tmp_path / "styled", 8, 5, ("alt", "vec", "vecap", "vecap_short")))
    for file in json.loads(styled.read_text())["files"]:
        rows = pq.read_table(styled.parent / file)
        pq.write_table(rows.append_column("vecap_short", rows["alt"]), styled.parent / file)
    made = mixture_of({str(styled): 1.0, manifests[0]: 1.0})
    table = load_mixture(made, None, ["vecap_short"]).table
    first = made.sources[0].rows
    shorts = [set(part["vecap_short"].to_pylist()) for part in (table.slice(0, first), table.slice(first))]
    styled_first = made.sources[0].manifest == str(styled)
    assert shorts[styled_first] == {""}
    assert "" not in shorts[not styled_first]
    with pytest.raises(ColumnsMissing, match="no manifest of the mixture has a column vecap_short"):
        load_mixture(mixture_of({manifests[0]: 1.0}), None, ["vecap_short"])


def test_tars_that_lie_elsewhere_keep_their_addresses(tmp_path: Path) -> None:
    uri = Path(manifest(tmp_path / "a", 8, 6))
    elsewhere = tmp_path / "adopted"
    (uri.parent / "download").rename(elsewhere)
    for file in json.loads(uri.read_text())["files"]:
        rows = pq.read_table(uri.parent / file)
        tars = [f"{elsewhere}/{Path(tar).name}" for tar in rows["tar"].to_pylist()]
        place = rows.column_names.index("tar")
        pq.write_table(rows.set_column(place, "tar", pa.array(tars)), uri.parent / file)
    assert not StreamedPictures(load_mixture(mixture_of({str(uri): 1.0})), 36, "pad").read([0, 7])[1]


@pytest.mark.parametrize(
    "changed",
    [{"rows": "8"}, {"rows": None}, {"rows": float("nan")}, {"rows": -5}, {"rows": 2.5}, {"digest": [1]}, {"files": 3},
     {"tars_relative_to": None}],
)  # fmt: skip
def test_a_strangers_json_that_is_no_manifests_is_said(tmp_path: Path, changed: dict[str, object]) -> None:
    uri = Path(manifest(tmp_path / "a", 8, 7))
    uri.write_text(json.dumps(json.loads(uri.read_text()) | changed))
    with pytest.raises(MixtureError, match="no manifest's JSON"):
        mixture_of({str(uri): 1.0})


def test_a_json_that_can_not_be_read_is_said(tmp_path: Path) -> None:
    nested = tmp_path / "nested.json"
    nested.write_text("[" * 200_000)
    for uri in (str(nested), str(tmp_path), "http://127.0.0.1:9/m.json?X-Amz-Signature=secret"):
        with pytest.raises(MixtureError, match=r"can be read|no manifest at") as told:
            mixture_of({uri: 1.0})
        assert "secret" not in str(told.value).split("(")[0]


def test_a_json_that_tells_of_more_rows_than_there_are_is_said(tmp_path: Path) -> None:
    uri = Path(manifest(tmp_path / "a", 8, 8))
    uri.write_text(json.dumps(json.loads(uri.read_text()) | {"rows": 12}))
    with pytest.raises(MixtureError, match=r"have 8 rows.*tell of 12"):
        load_mixture(mixture_of({str(uri): 1.0}))


def test_batches_of_a_mixture_depend_on_their_step_alone(manifests: tuple[str, str]) -> None:
    table = load_mixture(mixture_of({manifests[0]: 2.0, manifests[1]: 0.5}))
    pictures, tokenizer = StreamedPictures(table, 36, "pad"), tokenizer_for(TINY, table)
    forwards, alone = (Batches.of(table, pictures, tokenizer, TINY) for _ in range(2))
    assert forwards.plan.steps_per_epoch == 64 // TINY.batch_size
    in_order = [forwards.at(step) for step in range(9)]
    for step in (8, 3):
        assert alone.at(step).texts == in_order[step].texts
        assert bool((alone.at(step).images_BCHW == in_order[step].images_BCHW).all())
