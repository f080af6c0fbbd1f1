"""What isowsgi uses of gunicorn is in one table, and a gunicorn that lacks some of it is refused in one line before the fork."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from isowsgi.shared import gunicorn_parts
from isowsgi.shared.gunicorn_parts import PARTS
from tests.conftest import DEADLINE_S, ROOT

# gunicorn's modules that are imported whole, and so used as `name.part`.
WHOLE = {"glogging": "gunicorn.glogging", "util": "gunicorn.util", "base": "gunicorn.workers.base"}


def used() -> Iterator[tuple[str, str, str]]:
    """Yield file, module and name for each name of gunicorn that isowsgi's modules import or reach through an imported module."""
    for file in sorted((ROOT / "isowsgi").rglob("*.py")):
        place = str(file.relative_to(ROOT))
        wholes = {}
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gunicorn":
                for alias in node.names:
                    if WHOLE.get(alias.name) == f"{node.module}.{alias.name}":
                        wholes[alias.asname or alias.name] = WHOLE[alias.name]
                    else:
                        yield place, node.module or "", alias.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in wholes:
                yield place, wholes[node.value.id], node.attr


def test_every_name_of_gunicorn_that_is_used_is_in_the_table() -> None:
    assert [f"{place}: {module}.{name}" for place, module, name in used() if name not in PARTS.get(module, ())] == []


def test_the_table_has_no_name_that_is_not_used() -> None:
    names = {(module, name) for _, module, name in used()}
    sources = "".join(file.read_text() for file in (ROOT / "isowsgi").rglob("*.py") if file.name != "gunicorn_parts.py")

    tops = {(module, part) for module, parts in PARTS.items() for part in parts if "." not in part}
    members = [part for parts in PARTS.values() for part in parts if "." in part]

    assert tops - names == set()
    assert [member for member in members if member.split(".")[1] not in sources] == []


def test_the_installed_gunicorn_fits() -> None:
    assert gunicorn_parts.unfit_reason() is None


def test_the_package_requires_the_versions_that_were_tried() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    assert gunicorn_parts.REQUIREMENT in dependencies


def start(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run gunicorn with isowsgi's worker on a config file, in a process where `code` has changed gunicorn before."""
    (folder / "isowsgi.toml").write_text('[mounts]\n"/" = "no_such_module:app"\n')
    arguments = ["gunicorn", "-k", "isowsgi.Worker", "--bind", "127.0.0.1:0", "--no-control-socket", "isowsgi.toml"]
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {arguments!r}\n{code}\n"
    program += "from gunicorn.app.wsgiapp import run; run()"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import gunicorn; gunicorn.__version__ = '28.0.0'", "gunicorn 28.0.0 is installed, and"),
        ("import gunicorn; gunicorn.__version__ = '24.1.0'", "gunicorn 24.1.0 is installed, and"),
        (
            "import gunicorn.http.message as message; del message.HeaderPolicy._peer_trusted_for_forwarded",
            "which has no gunicorn.http.message.HeaderPolicy._peer_trusted_for_forwarded; ",
        ),
        (
            "import gunicorn.http.wsgi as wsgi; del wsgi.STATUS_RE, wsgi.HEADER_VALUE_RE",
            "which has no gunicorn.http.wsgi.HEADER_VALUE_RE and 1 more; ",
        ),
    ],
)
def test_a_gunicorn_that_does_not_fit_is_one_line_before_the_fork(tmp_path: Path, code: str, found: str) -> None:
    """Each mount went through its trials before and died by an ImportError."""
    ended = start(tmp_path, code)

    lines = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert (ended.returncode, len(lines)) == (1, 1), ended.stderr
    assert found in lines[0]
    assert lines[0].endswith("works with gunicorn 27: pip install 'gunicorn>=27,<28'")
    assert "Traceback" not in ended.stderr
    assert "Booting worker" not in ended.stderr


def test_check_refuses_a_gunicorn_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "no_such_module:app"\n')
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['isowsgi', 'check']\n"
    program += "import gunicorn; gunicorn.__version__ = '28.0.0'\nfrom isowsgi.cli.main import main; main()"

    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S)

    assert ended.returncode == 2
    assert "gunicorn 28.0.0 is installed, and isowsgi" in ended.stderr
