"""`make gpu-smoke` where there is no GPU: its checks run small, and one that fails hides no other."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import FOREIGN, PROJECT
from veclip_core.settings import Settings

sys.path.append(str(PROJECT / "benchmarks"))
import gpu_smoke

WAYS = ["gradient-cache", "fsdp"]


def smoke(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "benchmarks" / "gpu_smoke.py"), "--json", str(tmp_path / "smoke.json"), *arguments],
        env={**FOREIGN, "CUDA_VISIBLE_DEVICES": "", "VECLIP_CACHE": str(own_cache()), "VECLIP_ROOT": str(tmp_path / "root")},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert (tmp_path / "smoke.json").exists(), done.stdout + done.stderr
    return done.returncode, json.loads((tmp_path / "smoke.json").read_text())


def own_cache() -> Path:
    """The application's own: the conversion of SmolLM2 takes 15 seconds."""
    return Settings.from_environment().cache_folder


@pytest.mark.slow
def test_both_engines_run_and_tell_their_rates(tmp_path: Path) -> None:
    code, found = smoke(tmp_path, "--only", "describe", "fuse")
    assert code == 0, found
    assert found["ok"] is True
    assert found["on"] == "cpu"
    assert found["versions"]["torch"]  # type: ignore[index]
    checks: dict[str, dict[str, float]] = found["checks"]  # type: ignore[assignment]
    assert checks["describe"]["describe_per_s"] > 0
    assert checks["fuse"]["fuse_tokens_per_s"] > 0
    assert not (tmp_path / "root").exists(), "rates of a CPU at tiny sizes are in no table"


def test_a_check_that_fails_hides_no_other(tmp_path: Path) -> None:
    """And other ways of computing come to the loss of the plain one."""
    code, found = smoke(tmp_path, "--only", "bf16", *WAYS, "fuse", "--captioner", "nobody")
    checks: dict[str, dict[str, object]] = found["checks"]  # type: ignore[assignment]
    assert code == 1
    assert found["ok"] is checks["fuse"]["ok"] is False
    assert "nobody" in str(checks["fuse"]["error"])
    assert list(checks) == ["bf16", *WAYS, "fuse"]
    for name in ("bf16", *WAYS):
        assert checks[name]["ok"] is True, checks[name]
        assert checks[name]["samples_per_s"]


@pytest.mark.slow
def test_two_ranks_shard_through_the_loop(tmp_path: Path) -> None:
    code, found = smoke(tmp_path, "--only", "bf16", "fsdp", "--ranks", "2")
    checks: dict[str, dict[str, object]] = found["checks"]  # type: ignore[assignment]
    assert code == 0, found
    assert checks["fsdp"]["first_loss"] == pytest.approx(checks["bf16"]["first_loss"], rel=0.02)


def test_a_check_that_hangs_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    found = gpu_smoke.outcome(gpu_smoke.Options("bf16", "cpu", str(tmp_path)), within_s=0.3)
    assert found["ok"] is False
    assert found["error"] == "not done within 0.3 s"
    assert time.monotonic() - began < 10


def test_another_loss_than_the_plain_way_is_a_failure() -> None:
    found = {
        "bf16": {"first_loss": 2.0},
        "compile": {"first_loss": 2.03},
        "fsdp": {"first_loss": 2.2},
        "fuse": {"ok": True},
    }
    assert list(gpu_smoke.other_loss(found)) == ["fsdp"]


def test_the_error_is_the_line_that_says_it() -> None:
    log = "Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: CUDA out of memory\nE1122 elastic: failed\n"
    assert gpu_smoke.error_in(log) == "torch.OutOfMemoryError: CUDA out of memory"
    ranks = "[rank1]: ValueError: bad\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
    assert gpu_smoke.error_in(ranks) == "[rank1]: ValueError: bad"
    assert gpu_smoke.error_in("") == "nothing was said"
