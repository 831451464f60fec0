"""The filtering network on a small list from a local server: scores, manifests of what is kept, a mixture, a training on it."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_released import PICTURES, SCALE, origin, rows_of, settings_in  # noqa: F401
from tests.unit.clip_models import write_huggingface_clip
from veclip_core import storage
from veclip_core.mixing.manifest import SCORE
from veclip_core.pipeline.captions import make_captions
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.data_card import card_address
from veclip_core.pipeline.filtering import make_scores, scores_of
from veclip_core.pipeline.manifests import make_dfn_manifest, make_manifest
from veclip_core.pipeline.mixtures import make_mixture
from veclip_core.pipeline.scored_pairs import markdown_of_pairs, pairs_at
from veclip_core.pipeline.training import train_arm
from veclip_core.shards import NotMadeYet


@pytest.fixture(scope="module")
def chain(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Chain:  # noqa: F811
    """Captioned, not scored before a manifest by scores was asked for in vain, then scored."""
    folder = tmp_path_factory.mktemp("filtering")
    told = {"dfn": str(write_huggingface_clip(folder / "clip")), "licence": "ours to try", "mlflow": "off"}
    made = Chain(settings_in(folder, origin).model_copy(update=told), SCALE)
    made.raw_urls()
    made.shards()
    make_captions(made)
    for make in (make_dfn_manifest, lambda bare: make_manifest(with_settings(bare, dfn_in_manifest="keep"))):
        with pytest.raises(NotMadeYet, match="dfn_scores_tiny"):
            make(made)
    make_scores(made)
    return made


def with_settings(chain: Chain, **changed: object) -> Chain:
    return Chain(chain.settings.model_copy(update=changed), chain.scale)


def test_every_pair_is_scored_once(chain: Chain) -> None:
    again = make_scores(chain)
    assert (again.rows_in, again.rows_ok, again.errors) == (PICTURES, PICTURES - 2, {"no_text": 2})
    assert again.shards_made_now == 0
    looks = pairs_at(chain)
    assert [pair.score for pair in looks["lowest"]] == sorted(pair.score for pair in looks["lowest"])
    assert looks["lowest"][0].score < looks["at_the_line"][0].score < looks["highest"][-1].score
    assert markdown_of_pairs(looks["at_the_line"]).count("data:image/jpeg") == len(looks["at_the_line"])


def test_the_share_that_fits_best_is_kept(chain: Chain) -> None:
    _, scores = scores_of(chain)
    least = scores.lowest_of_top(0.5)
    report, uri = make_dfn_manifest(with_settings(chain, dfn_top=0.5))
    kept = rows_of(uri)
    assert len(kept) == report.rows_ok == scores.at_least(least) >= (PICTURES - 2) / 2
    assert all(row[SCORE] >= least - 1e-5 and row["vecap"] == "" for row in kept.values())
    assert report.errors == {"no_text": 2, "low_score": PICTURES - 2 - len(kept)}
    card = Path(card_address(uri)).read_text()
    for told in ("alts.csv | pictures and AltText | ours to try", "low_score", f"kept from {least:g} on"):
        assert told in card
    few, _ = make_dfn_manifest(with_settings(chain, dfn_top=0.25))
    assert few.rows_ok < report.rows_ok
    assert make_scores(chain).shards_made_now == 0, "another threshold scores nothing again"


def test_a_scales_own_manifest_has_the_scores_where_that_is_wanted(chain: Chain) -> None:
    _, plain = make_manifest(chain)
    _, scored = make_manifest(with_settings(chain, dfn_in_manifest="scores"))
    assert rows_of(scored).keys() == rows_of(plain).keys()
    scores = {sample: row[SCORE] for sample, row in rows_of(scored).items()}
    assert sum(score is None for score in scores.values()) == 2
    _, by_least = make_manifest(with_settings(chain, dfn_in_manifest="keep", dfn_least=0.0))
    assert rows_of(by_least).keys() == {sample for sample, score in scores.items() if score is not None and score >= 0}
    assert "fused" in {row["vecap_status"] for row in rows_of(by_least).values()}, "with the captions"


def test_a_model_is_trained_on_what_is_kept_and_captioned(chain: Chain) -> None:
    kept, _ = make_dfn_manifest(chain)
    whole, _ = make_manifest(chain)
    weighted = with_settings(chain, mixture={"manifest": 0.5, "dfn_manifest": 2.0})
    mixture, address = make_mixture(weighted)
    assert storage.exists(address)
    assert mixture.rows_per_epoch == 2 * kept.rows_ok + whole.rows_ok // 2
    with pytest.raises(NotMadeYet, match="other weights"):
        train_arm(chain, "dfn_veclip", progress_bar=False)
    make_dfn_manifest(with_settings(weighted, dfn_top=0.9))
    with pytest.raises(NotMadeYet, match=r"other manifests.*dfn_mixture_tiny"):
        train_arm(weighted, "dfn_veclip", progress_bar=False)
    make_dfn_manifest(weighted)
    made, trained = train_arm(weighted, "dfn_veclip", overrides={"steps": 2, "batch_size": 8}, progress_bar=False)
    assert (made.manifest_digest, trained.arm) == (mixture.digest, "dfn_veclip")
    assert np.isfinite(made.final_loss)
