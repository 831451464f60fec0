"""The graph that Dagster shows."""

from typing import Any

import dagster as dg
import pytest

from veclip_core.pipeline.versions import code_versions
from veclip_core.scales import SCALES
from veclip_core.settings import Settings, SettingsError
from veclip_core.stage_report import StageReport
from veclip_core.training.arms import EXPERIMENT
from veclip_core.training.sweeps import SWEEPS
from veclip_dagster import checks
from veclip_dagster.data_assets import digest_with_styles
from veclip_dagster.definitions import defs
from veclip_dagster.resources import VeclipResource
from veclip_dagster.scale_assets import scale_assets

EDGES = {
    "shards": {"raw_urls"},
    "vecap": {"shards"},
    "manifest": {"vecap"},
    "clip": {"manifest"},
    "veclip": {"manifest"},
    "eval_report": {"clip", "veclip"},
    "raw_urls": set(),
}


DATA = ("raw_urls", "shards", "vecap", "manifest")


@pytest.fixture(scope="module")
def graph() -> Any:
    return defs.resolve_asset_graph()


@pytest.mark.parametrize("scale", SCALES)
def test_each_scale_has_the_whole_chain(graph: Any, scale: str) -> None:
    # One's own pictures are for captioning: there is nothing to evaluate a model on.
    wanted = {asset: of for asset, of in EDGES.items() if scale != "own" or asset in DATA}
    for asset, upstream in wanted.items():
        node = graph.get(dg.AssetKey(f"{asset}_{scale}"))
        assert {key.to_user_string() for key in node.parent_keys} == {f"{name}_{scale}" for name in upstream}
        assert node.partitions_def is None, "the command line materialises unpartitioned assets only"
        assert node.is_executable
        assert node.description
        assert node.owners
        assert node.kinds
        assert node.group_name == f"scale_{scale}"
        assert node.code_version
    for asset in ("shards", "vecap", "manifest"):
        grid = graph.get(dg.AssetKey(f"{asset}_{scale}_parts"))
        assert not grid.is_executable
        assert grid.partitions_def is not None
        assert len(grid.partitions_def.get_partition_keys()) == SCALES[scale].parts


def test_the_sample_has_an_experiment(graph: Any) -> None:
    edges = {
        "vecap_control_sample": {"vecap_sample"},
        "manifest_control_sample": {"manifest_sample", "vecap_control_sample"},
        "arms_sample": {"manifest_sample", "manifest_control_sample"},
        "experiment_report_sample": {"arms_sample"},
    }
    for asset, upstream in edges.items():
        node = graph.get(dg.AssetKey(asset))
        assert {key.to_user_string() for key in node.parent_keys} == upstream
        assert node.group_name == "experiment_sample"
        assert node.is_executable
        assert node.code_version
    grid = graph.get(dg.AssetKey("arms_sample_trainings"))
    assert not grid.is_executable
    assert len(grid.partitions_def.get_partition_keys()) == len(EXPERIMENT.arms) * len(EXPERIMENT.seeds)


def test_the_sample_has_the_sweeps(graph: Any) -> None:
    versions = code_versions(SCALES["sample"], Settings())
    for name, sweep in SWEEPS.items():
        node = graph.get(dg.AssetKey(f"sweep_{name}_sample"))
        assert {key.to_user_string() for key in node.parent_keys} == {"manifest_sample"}
        assert node.group_name == "sweeps_sample"
        assert node.is_executable
        assert node.partitions_def is None
        assert node.code_version == versions[f"sweep_{name}"]
        grid = graph.get(dg.AssetKey(f"sweep_{name}_sample_trainings"))
        assert not grid.is_executable
        assert len(grid.partitions_def.get_partition_keys()) == len(sweep.axis) * 3
        job = defs.resolve_job_def(f"{name}_sweep_sample")
        assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {f"sweep_{name}_sample"}
    assert len({versions[f"sweep_{name}"] for name in SWEEPS}) == len(SWEEPS)


def test_every_data_asset_is_checked(graph: Any) -> None:
    checked = {key.asset_key.to_user_string() for key in graph.asset_check_keys}
    assert {f"{asset}_{scale}" for asset in ("raw_urls", "shards", "vecap", "manifest") for scale in SCALES} <= checked


def test_each_scale_has_a_job() -> None:
    jobs = {job.name for job in defs.resolve_all_job_defs()}
    filtered = {f"dfn_{scale}" for scale in SCALES if scale != "own"}
    assert {*(f"chain_{scale}" for scale in SCALES), *filtered, "experiment_sample", "reproduce_released"} <= jobs


def test_screening_is_there_when_it_is_asked_for_and_stands_before_the_captions() -> None:
    def edges(**settings: Any) -> dict[str, set[str]]:
        made = scale_assets(SCALES["3m"], Settings(**settings))
        assets = dg.Definitions(made, resources={"veclip": VeclipResource()}).resolve_asset_graph()
        nodes = {
            name: assets.get(dg.AssetKey(f"{name}_3m"))
            for name in ("screen", *DATA)
            if assets.has(dg.AssetKey(f"{name}_3m"))
        }
        return {name: {key.to_user_string() for key in node.parent_keys} for name, node in nodes.items()}

    assert "screen" not in edges()
    screened = edges(screen=("duplicates",))
    assert screened["screen"] == {"shards_3m"}
    assert screened["vecap"] == {"shards_3m", "screen_3m"}
    assert screened["manifest"] == {"vecap_3m", "screen_3m"}
    plain, asked, stricter = (
        code_versions(SCALES["3m"], Settings(**given))
        for given in (
            {},
            {"screen": ("duplicates",)},
            {"screen": ("duplicates",), "screen_thresholds": {"min_quality": 80}},
        )
    )
    assert asked.pop("screen") != stricter.pop("screen")
    assert plain == asked == stricter, "what is screened changes no other asset's version"


def parents(settings: Settings, scale: str = "3m") -> dict[str, set[str]]:
    """Each asset of a scale to the names, without the scale's, of what it is made from."""
    made = scale_assets(SCALES[scale], settings)
    graph = dg.Definitions(made, resources={"veclip": VeclipResource()}).resolve_asset_graph()
    return {
        key.to_user_string().removesuffix(f"_{scale}"): {
            parent.to_user_string().removesuffix(f"_{scale}") for parent in graph.get(key).parent_keys
        }
        for key in graph.get_all_asset_keys()
    }


def test_what_is_filtered_and_mixed_knows_what_it_is_made_from() -> None:
    plain = parents(Settings())
    expected = {
        "dfn_scores": {"shards"},
        "dfn_manifest": {"dfn_scores"},
        "dfn_mixture": {"dfn_manifest", "manifest"},
        "dfn_clip": {"dfn_manifest"},
        "dfn_veclip": {"dfn_mixture"},
    }
    assert {name: plain[name] for name in expected} == expected
    assert plain["manifest"] == {"vecap"}
    assert parents(Settings(dfn_in_manifest="keep"))["manifest"] == {"vecap", "dfn_scores"}
    screened = parents(Settings(screen=("duplicates",)))
    assert screened["dfn_scores"] == {"shards", "screen"}
    assert screened["dfn_manifest"] == {"dfn_scores", "screen"}
    elsewhere = parents(Settings(mixture={"s3://bucket/a.manifest.json": 1.0, "manifest": 2.0}))
    assert elsewhere["dfn_mixture"] == {"manifest"}


def test_an_arm_filters_where_that_is_no_circle() -> None:
    assert parents(Settings(dfn="veclip"))["dfn_scores"] == {"shards", "veclip"}
    assert parents(Settings(dfn="clip", dfn_in_manifest="keep"))["manifest"] == {"vecap"}
    assert parents(Settings(dfn_in_manifest="keep"), "own")["manifest"] == {"vecap"}
    for arm in ("dfn_clip", "dfn_veclip", "vecap_only", "control"):
        with pytest.raises(SettingsError, match="only clip and veclip can filter"):
            parents(Settings(dfn=arm))


def test_what_is_kept_changes_the_versions_of_what_is_filtered_alone() -> None:
    def versions(**given: Any) -> dict[str, str]:
        return code_versions(SCALES["3m"], Settings(**given))

    plain, fewer = versions(), versions(dfn_top=0.1)
    assert {name for name in plain if plain[name] != fewer[name]} == {"dfn_manifest"}
    kept, kept_fewer = versions(dfn_in_manifest="keep"), versions(dfn_in_manifest="keep", dfn_top=0.1)
    assert {name for name in kept if kept[name] != kept_fewer[name]} == {"dfn_manifest", "manifest"}


def test_a_list_of_which_most_is_blocked_stops_the_chain() -> None:
    def passed(**errors: int) -> dict[str | None, bool]:
        ok = 100 - sum(errors.values())
        report = StageReport("screen", "t", "i", "", "d", 1, 1, 1, 0, 100, ok, 0, errors, {}, 0, 1.0, 1.0, False)
        return {result.check_name: result.passed for result in checks.of_screening(report, report)}

    assert passed(near_duplicate=30, nsfw=20)["most_pictures_pass"]
    assert not passed(near_duplicate=30, nsfw=21)["most_pictures_pass"]
    assert passed(undecodable=60)["most_pictures_pass"], "what can't be opened is no verdict"
    assert "most_pictures_pass" in checks.BLOCKING


def report_of(digest: str) -> StageReport:
    return StageReport("select", "t", "identity", "", digest, 1, 1, 1, 0, 9, 9, 0, {}, {}, 0, 1.0, 1.0, False)


def test_other_captions_of_a_style_are_another_data_version() -> None:
    own, short, dense = (report_of(digest) for digest in ("own", "short", "dense"))
    assert digest_with_styles(own, []) == "own", (
        "without styles the version is the digest of the content, as everywhere"
    )
    versions = [digest_with_styles(own, styled) for styled in ([], [short], [dense], [short, dense])]
    assert len(set(versions)) == 4
    assert digest_with_styles(report_of("other"), [short]) != digest_with_styles(own, [short])
