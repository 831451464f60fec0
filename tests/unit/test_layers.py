"""What may import what, and how light the definitions are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "vllm", "mlflow", "img2dataset", "cv2", "open_clip", "matplotlib", "sklearn", "faiss")


def imported_modules(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("file", sorted((ROOT / "veclip_core").rglob("*.py")), ids=lambda file: file.stem)
def test_the_core_never_imports_dagster(file: Path) -> None:
    assert not {"dagster", "veclip_dagster"} & imported_modules(file)


@pytest.mark.parametrize("file", sorted((ROOT / "veclip_dagster").rglob("*.py")), ids=lambda file: file.stem)
def test_dagster_can_resolve_the_annotations(file: Path) -> None:
    assert "from __future__ import annotations" not in file.read_text()


@pytest.mark.parametrize("module", ["veclip_dagster.definitions", "veclip_core.cli"])
def test_definitions_and_command_line_load_without_the_heavy_libraries(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_only_the_settings_read_the_environment() -> None:
    readers = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "veclip_core").rglob("*.py"))
        if file.name != "settings.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv")
    ]
    assert not readers
