"""Does what wants a GPU run on the one that is there, and how fast: `make gpu-smoke`, ten minutes at most.

    python benchmarks/gpu_smoke.py [--json FILE] [--only CHECK ...] [--captioner NAME]

Each check is a process of its own with a time limit, so that one that fails or hangs does not hide the others; the exit code is 1
where one does. Without a GPU the same checks run small, on the CPU, but for those that say nothing there. The describing model is a
LLaVA of random weights unless a captioner is named: a real model's path, not its speed. Rates of trainings on a GPU go into the
root's table, which `veclip train --dry-run` reads.
"""
# ruff: noqa: T201

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from gpu_checks import CHECKS, FIRST_LOSS, PICTURES, Options, recipe_of

PROJECT = Path(__file__).parents[1]

ALL_WITHIN_S = 600
CHECK_WITHIN_S = 180
SAME_LOSS = 0.02
"""How far a way of computing may take the mean loss of the first steps from that of the plain one, relatively."""
PACKAGES = ("torch", "open_clip_torch", "transformers", "vllm", "veclip-dagster")


def outcome(options: Options, within_s: float) -> dict[str, Any]:
    """Run a check: `ok`, `seconds`, and its rates or its `error`."""
    started = time.monotonic()
    result, log = (Path(options.folder) / f"{options.check}.{kind}" for kind in ("json", "log"))
    script = [__file__, "--check", json.dumps(asdict(options)), "--json", str(result)]
    command = [sys.executable, *script]
    if CHECKS[options.check].launched:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={options.ranks}",
            *script,
        ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            code: int | None = process.wait(within_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_all_of(process)
    found: dict[str, Any] = {"ok": code == 0, "seconds": round(time.monotonic() - started, 1)}
    if code is None:
        return found | {"error": f"not done within {within_s:g} s"}
    if code:
        return found | {"error": error_in(log.read_text(errors="replace"))}
    return found | json.loads(result.read_text())


def end_all_of(process: "subprocess.Popen[bytes]") -> None:
    """A check's engines and ranks must not outlive it: the next check wants the GPU. torchrun gives ranks sessions of their own."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def error_in(log: str) -> str:
    """The last line of a trace, which says what went wrong; under torchrun another trace, of its own, comes below it."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [
        line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]+(Error|Exception|Diverged|Exit|Missing)\b", line)
    ]
    own = [line for line in raised if "ChildFailedError" not in line]
    return (own or lines or ["nothing was said"])[-1][:500]


def other_loss(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Check to what is wrong, where a way of computing comes to another loss than the plain one."""
    plain = found.get("bf16", {}).get(FIRST_LOSS)
    return {
        name: f"the loss of the first steps is {one[FIRST_LOSS]:.4f}, in the plain way it is {plain:.4f}"
        for name, one in found.items()
        if plain is not None and FIRST_LOSS in one and abs(one[FIRST_LOSS] / plain - 1) > SAME_LOSS
    }


def all_checks(only: Sequence[str], captioner: str, ranks: int, folder: str) -> dict[str, Any]:
    from tests.unit.training_world import write_world
    from veclip_core.pipeline.rate_table import device_name

    on: Literal["cuda", "cpu"] = "cuda" if gpus() else "cpu"
    write_world(Path(folder) / "world", *PICTURES[on])
    chosen = [name for name, check in CHECKS.items() if name in only and (on == "cuda" or not check.gpu_only)]
    ends, found = time.monotonic() + ALL_WITHIN_S, {}
    for name in chosen:
        left = ends - time.monotonic()
        found[name] = outcome(Options(name, on, folder, captioner, ranks), max(1.0, min(CHECK_WITHIN_S, left)))
        print(f"{'ok    ' if found[name]['ok'] else 'FAILED'}  {name:<26}{found[name]}", flush=True)
    for name, wrong in other_loss(found).items():
        found[name] |= {"ok": False, "error": wrong}
        print(f"FAILED  {name:<26}{wrong}")
    return {
        "ok": all(one["ok"] for one in found.values()),
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "on": on,
        "device": device_name(),
        "gpus": gpus(),
        "ranks": ranks,
        "versions": versions(),
        "checks": found,
    }


def gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def default_ranks() -> int:
    """As many GPUs as share a batch evenly, or one process on the CPU."""
    return 1 << max(0, gpus().bit_length() - 1)


def versions() -> dict[str, str]:
    import torch

    found = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def keep_rates(result: Mapping[str, Any]) -> None:
    """Rates of trainings on a GPU, where plans find them; not that of one rank's FSDP, which is of a loop of its own."""
    from veclip_core.pipeline.training_rates import Way, note
    from veclip_core.settings import Settings

    settings = Settings.from_environment()
    for name, one in result["checks"].items():
        check = CHECKS[name]
        ranks = result["ranks"] if check.launched else 1
        if result["on"] == "cuda" and one["ok"] and "samples_per_s" in one and not (check.launched and ranks == 1):
            note(
                settings,
                recipe_of(name, "cuda"),
                Way(check.precision, **check.how),
                samples_per_s=one["samples_per_s"],
                device=result["device"],
                what=f"gpu-smoke, {name}",
                ranks=ranks,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="these checks alone")
    parser.add_argument(
        "--captioner", default="", help="describe and fuse with the models of this captioner, such as default"
    )
    parser.add_argument("--ranks", type=int, help="processes of the check fsdp; by default one a GPU")
    parser.add_argument("--check", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.check:
        options = Options(**chosen.check)
        rates = CHECKS[options.check].run(options)
        if os.environ.get("RANK", "0") == "0":
            chosen.json.write_text(json.dumps(rates))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as folder:
        result = all_checks(chosen.only, chosen.captioner, chosen.ranks or default_ranks(), folder)
    keep_rates(result)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
