"""Screening in the real chain, on a folder of pictures: shards, verdicts, captions, manifest, removal, and the asset in Dagster."""

import hashlib
import io
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from tests.unit.shard_tables import KEY
from tests.unit.test_screening_checks import jpeg, scene
from veclip_core.evaluation.sets import ragged_set
from veclip_core.mixing.removals import Removals
from veclip_core.pipeline import contamination
from veclip_core.pipeline.captions import make_captions, make_control
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.data_card import card_address
from veclip_core.pipeline.manifests import make_control_manifest, make_manifest
from veclip_core.pipeline.removal import remove
from veclip_core.pipeline.screening import make_screen, screened
from veclip_core.pipeline.screening_note import screening_note
from veclip_core.scales import SCALES
from veclip_core.screening.preview import markdown_table, pairs
from veclip_core.settings import Settings
from veclip_core.shards import NotMadeYet
from veclip_core.storage import read_json
from veclip_dagster.resources import VeclipResource
from veclip_dagster.screen_assets import screen_asset


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Seven pictures in a folder: one is a poor copy of the first, one an evaluation picture."""
    folder = tmp_path_factory.mktemp("own")
    pictures, against = folder / "pictures", folder / "drawings"
    pictures.mkdir()
    against.mkdir()
    for seed in range(5):
        (pictures / f"{seed}.jpg").write_bytes(jpeg(scene(seed)))
        (pictures / f"{seed}.txt").write_text(f"Scene number {seed}")
    poor = io.BytesIO(jpeg(scene(0).resize((120, 120)), quality=50))
    (pictures / "copy.jpg").write_bytes(poor.getvalue())
    (pictures / "copy.txt").write_text("Scene number nought")
    (pictures / "evaluation.jpg").write_bytes(jpeg(scene(99)))
    (pictures / "evaluation.txt").write_text("An evaluation picture")
    for seed in (99, 98, 97, 96):
        scene(seed).save(against / f"{seed}.png")
    return Settings(
        root=str(folder / "root"), cache=str(folder / "cache"), pictures=str(pictures), captioner="released", mlflow="off",
        threads=1, screen_against=(str(against),),
    )  # fmt: skip


def chain_of(settings: Settings, **changed: Any) -> Chain:
    return Chain(settings.model_copy(update=changed), SCALES["own"])


def test_the_chain_from_pictures_to_a_manifest(own: Settings) -> None:
    plain = chain_of(own)
    plain.raw_urls()
    plain.shards()
    captions = make_captions(plain)
    report, _ = make_manifest(plain)
    assert report.rows_ok == 7
    unscreened = (
        "Pictures were not screened for near-duplicates, copies of evaluation pictures, unsafe content, faces, known"
    )
    assert screening_note(plain, plain.current("mix", "manifest")).startswith(unscreened)
    drawings = sorted(Path(own.screen_against[0]).glob("*.png"))
    evaluated = ragged_set("drawings", drawings, [["a drawing"]] * len(drawings), content="of four")
    (unknown,) = contamination.of(plain, [evaluated])
    assert unknown.copies is None
    assert "veclip run screen --scale own" in unknown.looked

    chain = chain_of(own, screen=("duplicates", "evaluation"))
    for asset in (make_captions, make_manifest):
        with pytest.raises(NotMadeYet, match=r"screen_own is not made yet.*veclip run screen"):
            asset(chain)
    look, screen = make_screen(chain)
    assert (look.rows_ok, screen.rows_in, screen.rows_ok) == (7, 7, 5)
    assert screen.errors == {"near_duplicate": 1, "copy_of_evaluation_picture": 1}
    assert [report.shards_made_now for report in make_screen(chain)] == [0, 0]

    # Captions that are there are kept; the manifest leaves out what is blocked.
    without, uri = make_manifest(chain)
    assert (without.rows_in, without.rows_ok, without.errors) == (7, 5, screen.errors)
    assert read_json(uri)["inputs"]["screen"] == screen.identity
    told = screening_note(chain, chain.current("mix", "manifest"))
    assert "screened for near-duplicates within 31 bits (PDQ, pdqhash" in told
    assert "copies of pictures of drawings." in told
    assert "not screened for unsafe content, faces, known pictures" in told
    (counted,) = contamination.of(chain, [evaluated])
    assert (counted.pictures, counted.copies, counted.left_out) == (4, 0, 1)
    assert "1 of the set's pictures had copies" in counted.looked

    # Made anew, captions are of other pictures, and none of a blocked one.
    again = make_captions(chain)
    assert again[0].identity != captions[0].identity
    assert again[0].errors == screen.errors
    assert again[-1].errors == screen.errors
    assert make_manifest(chain)[0].errors == screen.errors

    # Captions of screened pictures make a manifest also when screening is switched off again.
    off, uri = make_manifest(chain_of(own))
    assert off.errors == screen.errors
    assert {"look", "duplicates", "screen"} <= read_json(uri)["inputs"].keys()
    assert "screened for near-duplicates" in Path(card_address(uri)).read_text()
    make_manifest(chain)

    # The control's manifest leaves out what the manifest beside it does.
    make_control(chain)
    control, uri = make_control_manifest(chain)
    assert (control.rows_ok, control.errors) == (5, screen.errors)
    assert "screened for near-duplicates" in Path(card_address(uri)).read_text()

    # Against other evaluation sets, verdicts are none until they are made.
    more = Path(own.root).with_name("more drawings")
    more.mkdir()
    scene(95).save(more / "95.png")
    with pytest.raises(NotMadeYet, match="made with other evaluation sets"):
        make_manifest(chain_of(own, screen=chain.settings.screen, screen_against=(*own.screen_against, str(more))))

    # Another threshold re-runs the verdicts alone; until then nothing is made with the old ones.
    lenient = chain_of(own, screen=chain.settings.screen, screen_thresholds={"duplicate_distance": 0})
    with pytest.raises(NotMadeYet, match="or with other thresholds"):
        make_manifest(lenient)
    look, screen = make_screen(lenient)
    assert (look.shards_made_now, screen.shards_made_now, screen.errors) == (0, 1, {"copy_of_evaluation_picture": 1})

    make_screen(chain)
    current = chain.current("screen", "screen")
    sets = {name: current.input(chain.root, chain.source, name) for name in ("screen", "download")}
    found = pairs(sets["screen"], sets["download"], current.grid, current.shard_keys(), 5)
    assert len(found) == 1
    assert found[0].blocked != found[0].kept
    assert markdown_table(found).count("data:image/jpeg;base64,") == 2

    # Without screening everything is as it was.
    assert [report.shards_made_now for report in make_captions(plain)] == [0] * 4
    assert make_manifest(plain)[0].identity == report.identity

    # A removed picture leaves nothing in the new tables either, and nothing is made again for it.
    gone = found[0].copy_of
    hashes = {
        row["url_id"]: row["pdq"] for row in current.input(chain.root, chain.source, "look").read_table(KEY).to_pylist()
    }
    remove(chain.root, chain.source, Removals(ids=frozenset({gone})))
    tables = [
        path for stage in ("look", "screen", "duplicates") for path in Path(chain.root).rglob(f"{stage}/**/*.parquet")
    ]
    assert len(tables) >= 3
    for path in tables:
        assert hashes[gone] not in str(pq.read_table(path).to_pylist())
    assert [report.shards_made_now for report in make_screen(chain)] == [0, 0]


def test_the_asset_shows_pairs_and_reasons_and_its_checks_pass(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = chain_of(own, root=f"{own.root}-dagster")
    plain.raw_urls()
    plain.shards()
    known = Path(own.root).with_name("known.txt")
    known.write_text(hashlib.sha256(jpeg(scene(3))).hexdigest())
    given = {"root": plain.root, "cache": own.cache, "pictures": own.pictures, "threads": "1"}
    given |= {"screen": "duplicates,known", "known_hashes": str(known)}
    for name, value in given.items():
        monkeypatch.setenv(f"VECLIP_{name.upper()}", value)
    asset = screen_asset(SCALES["own"], "version", ("duplicates", "known"))
    done = dg.materialize([asset], resources={"veclip": VeclipResource()})
    numbers = {
        name: value.value for name, value in done.asset_materializations_for_node("screen_own")[0].metadata.items()
    }
    assert (numbers["screen/errors/near_duplicate"], numbers["screen/errors/known_picture"]) == (1, 1)
    assert numbers["near_duplicates"].count("data:image/jpeg;base64,") == 2
    assert "screen/errors_plot" in numbers
    checks = {one.check_name: one.passed for one in done.get_asset_check_evaluations()}
    assert checks == dict.fromkeys(("counts_add_up", "some_rows_ok", "no_shard_set_aside", "most_pictures_pass"), True)
    chain = Chain(VeclipResource().settings(), SCALES["own"])
    downloads = chain.current("download", "shards").identity
    assert screened(chain, downloads) == chain.current("screen", "screen")
    with pytest.raises(NotMadeYet, match="of other pictures"):
        screened(chain, "another")
    with pytest.raises(NotMadeYet, match="was made for duplicates, known"):
        screened(chain_of(chain.settings, screen=("duplicates",)), downloads)
    known.write_text("0" * 64)
    with pytest.raises(NotMadeYet, match="or known pictures"):
        screened(chain, downloads)
