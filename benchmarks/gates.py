"""Runs the benchmarks of `gates.yaml` and says which of them hold. Each script runs once, also where several gates read it.

python benchmarks/gates.py [--only TEXT]
"""
# ruff: noqa: T201

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="gates whose name holds this")
    chosen = parser.parse_args()
    gates = [gate for gate in yaml.safe_load((HERE / "gates.yaml").read_text()) if chosen.only in gate["name"]]
    results: dict[tuple[str, ...], dict[str, Any]] = {}
    missed = 0
    for gate in gates:
        command = (gate["script"], *gate["arguments"])
        if command not in results:
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                subprocess.run([sys.executable, str(HERE / command[0]), *command[1:], "--json", file.name], check=True)
                results[command] = json.loads(Path(file.name).read_text())
        value = results[command][gate["metric"]]
        holds = value >= gate.get("at_least", value) and value <= gate.get("at_most", value)
        missed += not holds
        limit = f"at least {gate['at_least']}" if "at_least" in gate else f"at most {gate['at_most']}"
        print(f"{'holds' if holds else 'MISSED'}  {gate['name']}: {value} ({limit})")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
