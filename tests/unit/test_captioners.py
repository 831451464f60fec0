"""Which models caption a scale, under which revision, and what of it decides the content."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from veclip_core.captioning.captioners import CAPTIONERS, captioner_named
from veclip_core.captioning.describe import DescribeConfig
from veclip_core.captioning.engines.base import EngineConfig
from veclip_core.captioning.engines.weights import pinned
from veclip_core.captioning.prompts import VICUNA_TEMPLATE
from veclip_core.captioning.quality import QualityThresholds
from veclip_core.captioning.rewrite import ONE_PASS, RewriteConfig, UndescribedConfig
from veclip_core.captioning.styles import style_named
from veclip_core.config import Config
from veclip_core.pipeline import engines, executors
from veclip_core.pipeline.rates import NoRates, estimate_scale, rates_of
from veclip_core.pipeline.versions import code_versions
from veclip_core.scales import SCALES
from veclip_core.settings import Settings, SettingsError


def test_settings_choose_the_captioner_and_single_models():
    scale = SCALES["3m"]
    assert engines.captioner_of(scale, Settings()).name == "default"
    chosen = engines.captioner_of(
        scale, Settings(captioner="paper", describer="my/vlm", candidates=4, quantization="fp8")
    )
    assert (chosen.describer, chosen.fuser) == ("my/vlm", CAPTIONERS["paper"].fuser)
    fusing = engines.fusing_config(chosen)
    assert fusing.engine.chat_template == VICUNA_TEMPLATE
    assert (fusing.engine.quantization, fusing.sampling.candidates) == ("fp8", 4)
    assert fusing.sampling.temperature > 0, "greedy candidates would be equal"
    with pytest.raises(SettingsError, match="there are sample, default, paper, modern, one-pass"):
        engines.captioner_of(scale, Settings(captioner="best"))


def test_one_pass_has_no_descriptions_and_its_own_thresholds():
    captioner = captioner_named("one-pass")
    assert isinstance(engines.describing_config(captioner), UndescribedConfig)
    assert isinstance(engines.fusing_config(captioner), RewriteConfig)
    assert engines.select_config_for(captioner).thresholds == ONE_PASS


def test_a_folders_weights_are_named_by_their_content_and_not_by_their_place(tmp_path: Path):
    for name in ("a", "b", "c"):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(40_000_000))
    with open(tmp_path / "c" / "model" / "model.safetensors", "r+b") as file:
        file.seek(20_000_000)
        file.write(b"fine-tuned in the middle")
    a, b, c = (
        pinned(EngineConfig(model=str(tmp_path / name / "model")), str(tmp_path), tmp_path) for name in ("a", "b", "c")
    )
    assert a.identity() == b.identity()
    assert a.folder != b.folder
    assert a.identity() != c.identity()
    assert (a.model, a.revision is not None) == ("model", True)


def test_a_hub_id_keeps_the_commit_of_the_first_run(tmp_path: Path):
    """With a hub cache on disk and no network, as on a cluster's node."""
    hub = tmp_path / "hf" / "hub" / "models--own--tiny"
    for commit in ("a" * 40, "b" * 40):
        (hub / "snapshots" / commit).mkdir(parents=True)
        (hub / "snapshots" / commit / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (hub / "refs").mkdir()
    code = (
        "import sys; from pathlib import Path; from veclip_core.captioning.engines.base import EngineConfig\n"
        "from veclip_core.captioning.engines.weights import pinned\n"
        "print(pinned(EngineConfig(model='own/tiny'), sys.argv[1], Path(sys.argv[1])).revision)"
    )
    found = []
    for commit in ("a" * 40, "b" * 40):
        (hub / "refs" / "main").write_text(commit)
        environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", code, str(tmp_path / "root")]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout.strip())
    assert found == ["a" * 40, "a" * 40]


def test_workers_get_gpus_of_their_own():
    settings = Settings(gpus=("0", "1", "2", "3"), tensor_parallel=2)
    executor = executors.for_captions(settings, engines.fuse_operation(SCALES["sample"], settings))
    assert executor.workers_at_once() == 2
    assert executor.gpus == (("0", "1"), ("2", "3"))  # type: ignore[attr-defined]
    assert executors.devices(settings, executor) == 4
    with pytest.raises(SettingsError, match="3 captioning workers of 2 GPUs each need 6 GPUs"):
        executors.for_captions(
            settings.model_copy(update={"caption_workers": 3}), engines.fuse_operation(SCALES["sample"], settings)
        )


def test_an_estimate_without_rates_says_what_measures_them(tmp_path: Path):
    with pytest.raises(NoRates, match="veclip run vecap --canary"):
        estimate_scale(Settings(root=str(tmp_path)), SCALES["3m"], SCALES["3m"], 1, 0.7)


def test_an_estimate_takes_the_rates_of_the_same_work_and_no_row_twice(tmp_path: Path):
    """A root where a style, the control and another prompt were made too: their markers are no pictures of the scale."""
    scale, short = SCALES["sample"], style_named("short")
    settings = Settings(root=str(tmp_path), styles=("short",))
    captioner = engines.captioner_of(scale, settings)
    describing = DescribeConfig(describer=engines.describing_config(captioner))
    own, styled = engines.fusing_config(captioner), engines.fusing_config(captioner, short)
    other = own.model_copy(update={"sampling": own.sampling.model_copy(update={"max_tokens": 7})})
    pinned_later = own.model_copy(update={"engine": own.engine.model_copy(update={"revision": "a" * 40})})

    def put_stage(stage: str, identity: str, config: Config, inputs: dict[str, str], rows: int, seconds: float) -> None:
        folder = tmp_path / scale.source.name / stage / identity
        (folder / "part-00000").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"config": config.model_dump(mode="json"), "inputs": inputs}))
        marker = {"rows_in": rows, "rows_ok": rows, "fallbacks": 0, "errors": {}, "extra": {}, "bytes": 0}
        (folder / "part-00000" / "00000.success.json").write_text(json.dumps({**marker, "seconds": seconds}))

    for stage, identity, config, inputs, rows, seconds in (
        ("describe", "d", describing, {}, 1_000, 100.0),
        ("fuse", "f", pinned_later, {"describe": "d"}, 1_200, 60.0),
        ("fuse", "short", styled, {"describe": "d"}, 1_200, 30.0),
        ("fuse", "control", own, {"describe": "shuffled"}, 900, 90.0),
        ("fuse", "other", other, {"describe": "d"}, 9_999, 1.0),
    ):
        put_stage(stage, identity, config, inputs, rows, seconds)
    rates, samples, _ = rates_of(scale, settings, scale)
    assert rates == {"describe": 10.0, "fuse": 20.0, "fuse short": 40.0}
    assert samples == 1.2
    dense = settings.model_copy(update={"styles": ("dense",)})
    assert rates_of(scale, dense, scale)[0]["fuse dense"] == 20.0, "not made yet: at the rate of the scale's own"
    judged = settings.model_copy(update={"ethics": "judge"})
    with pytest.raises(NoRates):
        rates_of(scale, judged, scale)
    put_stage("check", "h", engines.check_config_for(scale, judged), {"describe": "d"}, 1_200, 300.0)
    rates, _, _ = rates_of(scale, judged, scale)
    assert rates == {"describe": 10.0, "check": 4.0, "fuse": 20.0, "fuse short": 40.0}
    put_stage("check", "words", engines.check_config_for(scale, settings), {"describe": "d"}, 1_200, 3.0)
    assert rates_of(scale, settings, scale)[0] == {"describe": 10.0, "fuse": 20.0, "fuse short": 40.0}, (
        "no device at work"
    )


def test_released_captions_need_no_model_and_take_none():
    plain = Settings(captioner="released")
    assert engines.require_models(SCALES["300m"], plain) is None
    assert rates_of(SCALES["3m"], plain, SCALES["3m"])[0] == {}
    for make in (engines.describe_operation, engines.check_operation, engines.fuse_operation, engines.select_operation):
        assert not executors.needs_engine(make(SCALES["3m"], plain))
    for given in (
        {"fuser": "smollm2"},
        {"describer": "concepts"},
        {"styles": ("short",)},
        {"candidates": 3},
        {"quantization": "fp8"},
    ):
        with pytest.raises(SettingsError, match="captioner `released` makes no captions, and VECLIP_"):
            engines.captioner_of(SCALES["3m"], plain.model_copy(update=given))
    with pytest.raises(SettingsError, match="released captions have none"):
        engines.check_operation(SCALES["3m"], plain.model_copy(update={"ethics": "judge"}))


def test_another_threshold_is_another_select_and_nothing_else():
    scale, plain = SCALES["sample"], Settings()
    changed = Settings.from_environment({"VECLIP_THRESHOLDS": '{"min_alt_share": 0.9, "max_words": 20}'})
    thresholds = engines.select_operation(scale, changed).config.thresholds  # type: ignore[attr-defined]
    assert (thresholds.min_alt_share, thresholds.max_words) == (0.9, 20)
    assert thresholds.min_vec_share == QualityThresholds().min_vec_share
    for make in (engines.check_operation, engines.fuse_operation):
        assert make(scale, changed).config.identity() == make(scale, plain).config.identity(), "no GPU hour for it"
    select = engines.select_operation
    assert select(scale, changed).config.identity() != select(scale, plain).config.identity()
    assert code_versions(scale, changed)["vecap"] != code_versions(scale, plain)["vecap"]
    short = style_named("short")
    assert select(scale, changed, short).config.identity() == select(scale, plain, short).config.identity()
    for wrong in ('{"min_alt": 1}', '{"max_words": 2.5}', '{"min_alt_share": 7}'):
        with pytest.raises(SettingsError, match=r"VECLIP_THRESHOLDS: .*There are min_words, max_words"):
            select(scale, Settings.from_environment({"VECLIP_THRESHOLDS": wrong}))
    for no_json in ("0.7", "{", "[]"):
        with pytest.raises(SettingsError, match="VECLIP_THRESHOLDS="):
            Settings.from_environment({"VECLIP_THRESHOLDS": no_json})
