"""The rooms of the package: where code runs decides where it lies, and what it may import."""

from __future__ import annotations

import ast
import re
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
    "spawner": {"shared", "configuration", "instances", "spawner"},
    "worker": {"shared", "inside", "configuration", "master", "instances", "isolation", "spawner", "worker"},
    "status": {"shared", "status"},
    "files": {"shared", "files"},
    "importing": {"shared", "configuration", "importing"},
    "exporting": {"shared", "configuration", "exporting"},
    "cli": {"shared", "configuration", "isolation", "importing", "exporting", "cli"},
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


# What a reader can keep in mind. What is longer for a reason has it in a comment just above: "# Longer than most: ...".
MOST_METHODS, MOST_LINES_OF_A_CLASS, MOST_LINES_OF_A_FUNCTION = 25, 300, 50
REASON = "# Longer than most: "


def too_large(tree: ast.AST) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            methods = sum(isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)) for each in node.body)
            if lines > MOST_LINES_OF_A_CLASS or methods > MOST_METHODS:
                yield node, f"class {node.name} has {lines} lines and {methods} methods"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_LINES_OF_A_FUNCTION:
                yield node, f"function {node.name} has {lines} lines"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_no_class_and_no_function_is_larger_than_a_reader_can_keep_in_mind(room: str) -> None:
    """One that grows is split along its responsibilities; a flat table that a split would make worse says so above itself."""
    wrong = []
    for file in sorted((PACKAGE / room).rglob("*.py")):
        source = file.read_text()
        above = source.splitlines()
        reasons = {number for number, line in enumerate(above, 1) if line.strip().startswith(REASON)}
        for node, what in too_large(ast.parse(source)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first - 1 in reasons:
                reasons.remove(first - 1)
            else:
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {what}")
        wrong += [f"{file.relative_to(ROOT)}:{number}: a reason for nothing" for number in reasons]

    assert wrong == []


PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def mapped() -> Iterator[Path]:
    """Yield the modules that the map in ARCHITECTURE.md names; a folder's line ends with a slash after its name."""
    (block,) = re.findall(r"^```\nisowsgi/\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    folders: list[tuple[int, Path]] = [(0, PACKAGE)]
    for line in block.splitlines():
        name = line.split()[0]
        indent = len(line) - len(line.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        path = folders[-1][1] / name
        if name.endswith("/"):
            folders.append((indent, path))
        else:
            yield path


def test_the_map_has_every_module_and_no_other() -> None:
    """A new module gets its line in ARCHITECTURE.md, in the commit that makes it."""
    modules = {file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py" or file.parent == PACKAGE}
    names = [str(file.relative_to(PACKAGE)) for file in mapped()]

    assert sorted(names) == sorted(str(file.relative_to(PACKAGE)) for file in modules)


def test_what_differs_between_releases_is_told_in_one_place() -> None:
    asking = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "isowsgi").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("version_info", "hexversion", "python_version_tuple")
    }
    # The last one says which release runs the host, beside what other Pythons answer.
    assert asking == {"isowsgi/shared/interpreters.py", "isowsgi/shared/releases.py", "isowsgi/configuration/pythons.py"}


def test_the_page_tells_the_rules_of_imports_that_are_tested() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)

    assert {room: {room, *re.findall(r"`(\w+)`", others)} for room, others in rows} == MAY_IMPORT


@pytest.mark.parametrize("title", ["One request, file by file", "One reload, file by file"])
def test_a_walk_has_at_most_twelve_files_all_of_which_are_there(title: str) -> None:
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    files = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \|", section, re.MULTILINE)

    assert 8 <= len(files) <= 12
    assert [file for file in files if not (PACKAGE / file).exists()] == []


def test_every_module_that_the_page_names_is_there() -> None:
    names = re.findall(r"`(?:isowsgi/)?([\w/]+\.py)`", PAGE)

    assert [name for name in names if not (PACKAGE / name).exists() and not (ROOT / name).exists()] == []
