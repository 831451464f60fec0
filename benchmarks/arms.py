"""Arms of a comparison: each runs in a fresh process, which tells seconds, peak memory and what it counted."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Arms = Mapping[str, Callable[[Mapping[str, Any]], int]]


def add_arguments(parser: argparse.ArgumentParser, arms: Arms) -> None:
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--arm", choices=list(arms), help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)


def measured(script: str, arm: str, **options: Any) -> dict[str, float]:
    """One arm of `script`, in a process of its own: `count`, `seconds`, `peak_mb`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, script, "--arm", arm, "--options", json.dumps(options), "--json", result.name]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
        return dict(json.loads(Path(result.name).read_text()))


def run_arm(arms: Arms, arm: str, options: Mapping[str, Any]) -> dict[str, float]:
    """In that process."""
    started = time.monotonic()
    count = arms[arm](options)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"count": count, "seconds": time.monotonic() - started, "peak_mb": peak_mb}
