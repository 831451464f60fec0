"""The graph that Dagster shows."""

from typing import Any

import dagster as dg
import pytest

from veclip_core.scales import SCALES
from veclip_core.stage_report import StageReport
from veclip_core.training.arms import EXPERIMENT
from veclip_dagster.data_assets import digest_with_styles
from veclip_dagster.definitions import defs

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


def test_every_data_asset_is_checked(graph: Any) -> None:
    checked = {key.asset_key.to_user_string() for key in graph.asset_check_keys}
    assert {f"{asset}_{scale}" for asset in ("raw_urls", "shards", "vecap", "manifest") for scale in SCALES} <= checked


def test_each_scale_has_a_job() -> None:
    jobs = {job.name for job in defs.resolve_all_job_defs()}
    assert {*(f"chain_{scale}" for scale in SCALES), "experiment_sample"} <= jobs


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
