"""The rooms of the package: where code runs decides where it lies, and what it may import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "isowsgi"

# What each room may import of the others. No exceptions: a module that needs more lies in the wrong room.
MAY_IMPORT = {
    "shared": {"shared"},
    "inside": {"shared", "inside"},
    "configuration": {"shared", "configuration"},
    "master": {"shared", "configuration", "master"},
    "instances": {"shared", "inside", "configuration", "instances"},
    "isolation": {"shared", "inside", "configuration", "instances", "isolation"},
    "worker": {"shared", "inside", "configuration", "master", "instances", "isolation", "worker"},
    "status": {"shared", "status"},
    "cli": {"shared", "configuration", "isolation", "cli"},
}


def imports(file: Path) -> Iterator[str]:
    """Yield the modules of isowsgi that a file imports, late imports and those for the type checker included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "isowsgi":
            yield from (f"isowsgi.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isowsgi."):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("isowsgi"))


def test_every_module_lies_in_a_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}

    assert rooms == set(MAY_IMPORT)
    # gunicorn and Python look for these here.
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "toml.py"}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_its_place_allows(room: str) -> None:
    allowed = MAY_IMPORT[room]
    wrong = [
        f"{file.relative_to(ROOT)}: {module}"
        for file in sorted((PACKAGE / room).rglob("*.py"))
        for module in imports(file)
        if module.count(".") and module.split(".")[1] not in allowed and module != "isowsgi.__version__"
    ]

    assert wrong == []


@pytest.mark.parametrize("room", ["shared", "inside"])
def test_what_apps_interpreters_import_needs_the_standard_library_and_gunicorn_only(room: str) -> None:
    """Each mount pays for each import, and an app's venv may hold another release of anything else."""
    allowed = sys.stdlib_module_names | {"gunicorn", "isowsgi", "_xxsubinterpreters", "_interpreters"}
    wrong = []
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            wrong += [f"{file.relative_to(ROOT)}: {module}" for module in modules if module.split(".")[0] not in allowed]

    assert wrong == []
