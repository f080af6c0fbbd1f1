"""tools/: which Python the Makefile takes, and venvs that are made once."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


def load(name: str) -> Any:
    """Import a tool by its path: tools/ is no package, and none of it is installed."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses looks its module up there
    spec.loader.exec_module(module)
    return module


pick_python = load("pick_python")
make_venv = load("make_venv")
lowest_versions = load("lowest_versions")
site_pages = load("site_pages")
mutants = load("mutants")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with no Python but those that the test puts on it."""
    return Machine(tmp_path)


class Machine:
    """Fake Pythons: small scripts that answer pick_python's question."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"PATH": str(root / "bin"), "PYENV_ROOT": str(root / "pyenv"), "HOME": str(root)}

    def add(self, path: str, *version: int, level: str = "final", **said: Any) -> str:
        python = self.root / path
        answer = {
            "executable": str(python),
            "implementation": "cpython",
            "version": [*version, level, 0],
            "free_threaded": False,
            "lacks": [],
        }
        return self.add_script(path, f"echo '{json.dumps(answer | said)}'")

    def add_script(self, path: str, script: str) -> str:
        python = self.root / path
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        return str(python)

    def pick(self, **environ: str) -> str:
        executable: str = pick_python.pick(self.environ | environ, [str(self.root / "opt/*/usr/bin")]).executable
        return executable


def test_the_newest_of_all_places_is_picked(machine: Machine) -> None:
    """By number, not by text: 3.14.10 is newer than 3.14.9."""
    machine.add("bin/python3", 3, 11, 2)
    machine.add("pyenv/versions/3.14.9/bin/python", 3, 14, 9)
    newest = machine.add("opt/cpython/usr/bin/python3.14", 3, 14, 10)
    machine.add("bin/python3.13", 3, 13, 18)

    assert machine.pick() == newest


def test_path_wins_among_equals(machine: Machine) -> None:
    first = machine.add("bin/python3.14", 3, 14, 10)
    machine.add("opt/other/usr/bin/python3.14", 3, 14, 10)

    assert machine.pick() == first


def test_a_final_release_beats_a_newer_candidate(machine: Machine) -> None:
    final = machine.add("bin/python3.14", 3, 14, 1)
    candidate = machine.add("bin/python3.15", 3, 15, 0, level="candidate")

    assert machine.pick() == final

    Path(final).unlink()

    assert machine.pick() == candidate


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ((3, 10, 13), {}),
        ((3, 16, 0), {}),
        ((3, 14, 10), {"free_threaded": True}),
        ((3, 11, 9), {"implementation": "pypy"}),
        ((3, 14, 10), {"lacks": ["ssl"]}),
        ((3, 12, 8), {"lacks": ["subinterpreters"]}),
    ],
)
def test_what_isowsgi_cannot_run_on_is_passed_over(machine: Machine, version: tuple[int, ...], said: dict[str, Any]) -> None:
    machine.add("bin/python3", *version, **said)
    usable = machine.add("bin/python3.11", 3, 11, 7)

    assert machine.pick() == usable


@pytest.mark.parametrize("script", ["exit 127", "echo hello", "echo '[]'", "exec sleep 30"])
def test_what_does_not_answer_is_passed_over(machine: Machine, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim of pyenv's is such a thing where no version is selected."""
    monkeypatch.setattr(pick_python, "ANSWER_S", 2)  # what the sleeper costs this test
    machine.add_script("shims/python3.14", script)
    machine.environ["PATH"] += f":{machine.root}/shims"
    usable = machine.add("bin/python3.11", 3, 11, 7)

    assert machine.pick() == usable


def test_the_python_behind_a_shim_is_named(machine: Machine) -> None:
    """A shim stands for another Python as soon as another is selected."""
    real = machine.add("pyenv/versions/3.12.1/bin/python3.12", 3, 12, 1)
    machine.add("pyenv/shims/python3.12", 3, 12, 1, executable=real)
    machine.environ["PATH"] += f":{machine.root}/pyenv/shims"

    assert machine.pick() == real


def test_no_python_is_said_in_one_line(machine: Machine) -> None:
    machine.add("bin/python3", 3, 10, 13)
    machine.add("bin/python3.14", 3, 14, 10, free_threaded=True)

    with pytest.raises(pick_python.Unusable) as raised:
        machine.pick()

    assert str(raised.value) == (
        "expected CPython 3.11 to 3.15 on PATH or in pyenv's folders, found CPython 3.10.13, CPython 3.14.10, free-threaded; "
        "install one or set PYTHON to its path"
    )


@pytest.mark.parametrize("named", ["python3.12", "{root}/bin/python3.12"])
def test_python_in_the_environment_wins(machine: Machine, named: str) -> None:
    wanted = machine.add("bin/python3.12", 3, 12, 8)
    machine.add("bin/python3.14", 3, 14, 10)

    assert machine.pick(PYTHON=named.format(root=machine.root)) == wanted


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("python3.9", "expected CPython 3.11 to 3.15 (not free-threaded), got 'python3.9': CPython 3.9.18"),
        ("python3.8", "expected the name or path of a Python, got 'python3.8', which is not there or not executable"),
        ("broken", "expected a working Python, got 'broken': it ended with status 3"),
    ],
)
def test_a_python_in_the_environment_that_will_not_do_is_an_error(machine: Machine, named: str, reason: str) -> None:
    """Not a reason to take another: whoever names one wants that one."""
    machine.add("bin/python3.14", 3, 14, 10)
    machine.add("bin/python3.9", 3, 9, 18)
    machine.add_script("bin/broken", "exit 3")

    with pytest.raises(pick_python.Unusable) as raised:
        machine.pick(PYTHON=named)

    assert str(raised.value) == f"PYTHON: {reason}"


def test_a_real_python_answers() -> None:
    answer = pick_python.ask(sys.executable)

    assert answer.version == tuple(sys.version_info)
    assert answer.fault is None


# With no requirements a venv needs no network.


def make(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = make_venv.main([sys.executable, str(folder)])
    return status, capsys.readouterr().out


def test_a_venv_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = make(tmp_path / "venv", capsys)
    made = (tmp_path / "venv" / "pyvenv.cfg").stat().st_mtime_ns

    assert status == 0
    assert out.startswith("venv: installing nothing ... ")

    assert make(tmp_path / "venv", capsys) == (0, "")
    assert (tmp_path / "venv" / "pyvenv.cfg").stat().st_mtime_ns == made


def test_a_venv_that_was_not_finished_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "venv", capsys)
    (tmp_path / "venv" / make_venv.STAMP).unlink()
    (tmp_path / "venv" / "rest").touch()

    assert make(tmp_path / "venv", capsys)[1] != ""
    assert not (tmp_path / "venv" / "rest").exists()


def test_a_changed_checkout_is_installed_again(tmp_path: Path) -> None:
    """But not for a change that no install would carry: of a test, or of what Python compiles."""
    package = tmp_path / "shop"
    package.mkdir()
    for file in ("pyproject.toml", "shop/__init__.py", "shop/wsgi.py"):
        (tmp_path / file).touch()
    stamp = make_venv._stamp("", [str(tmp_path)])
    (package / "wsgi.pyc").touch()
    (tmp_path / "test_shop.py").touch()

    assert make_venv._stamp("", [str(tmp_path)]) == stamp

    (package / "wsgi.py").write_text("application = None")

    assert make_venv._stamp("", [str(tmp_path)]) != stamp


def test_an_editable_checkout_is_installed_again_for_its_pyproject_only(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    for file in ("pyproject.toml", "shop/__init__.py"):
        (tmp_path / file).touch()
    stamp = make_venv._stamp("", ["-e", str(tmp_path)])
    (package / "__init__.py").write_text("debug = True")

    assert make_venv._stamp("", ["-e", str(tmp_path)]) == stamp

    (tmp_path / "pyproject.toml").write_text("[project]")

    assert make_venv._stamp("", ["-e", str(tmp_path)]) != stamp


def test_the_failure_of_a_command_comes_with_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = Machine(tmp_path).add_script("bin/python3.14", 'case "$*" in *venv*) echo "no module venv"; exit 1;; esac; echo 3.14')

    with pytest.raises(SystemExit) as raised:
        make_venv.main([python, str(tmp_path / "venv")])

    assert raised.value.code == 1
    err = capsys.readouterr().err.splitlines()
    assert err == ["    no module venv", "make_venv: venv: installing nothing: python3.14 ended with status 1"]


def test_the_page_of_packages_is_what_its_tool_writes() -> None:
    script = [sys.executable, str(TOOLS / "packages_page.py"), "--check"]

    done = subprocess.run(script, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_lowest_version_of_each_requirement_is_its_lower_bound() -> None:
    assert list(lowest_versions.lowest(["gunicorn>=27,<28", "rich>=13"])) == ["gunicorn==27", "rich==13"]


@pytest.mark.parametrize("requirement", ["rich", "rich<15", "rich>13", "rich[all]>=13"])
def test_a_requirement_without_a_lowest_version_is_refused(requirement: str) -> None:
    with pytest.raises(lowest_versions.NoLowest, match="expected 'name>=version'"):
        list(lowest_versions.lowest([requirement]))


def test_the_site_has_every_page_and_links_to_the_repository_for_what_is_no_page(tmp_path: Path) -> None:
    site_pages.lay_out(tmp_path)

    laid_out = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md"))
    pages = [path for path in site_pages.sources() if path.suffix == ".md"]
    assert laid_out == sorted("index.md" if path.name == "README.md" else str(path.relative_to(site_pages.ROOT)) for path in pages)
    isolation = (tmp_path / "docs/explanation/isolation.md").read_text()
    assert f"]({site_pages.repository()}/blob/main/tests/functional/test_walls.py)" in isolation
    assert "](docs/tutorial.md)" in (tmp_path / "index.md").read_text()


def test_a_page_with_a_link_to_nothing_is_refused() -> None:
    page = site_pages.ROOT / "docs/tutorial.md"

    with pytest.raises(site_pages.DeadLink, match=r"docs/tutorial.md: expected the path of a file, got 'nowhere.md'"):
        site_pages.with_links(page, "see [there](nowhere.md#at-all)", set(), "https://example.com")


def test_a_mutant_of_an_annotation_is_none() -> None:
    (span,) = mutants.places_of_annotations("def f(a: int | None = 1 | 2): pass")

    assert span == ((1, 9), (1, 19))
