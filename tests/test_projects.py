"""`isowsgi init`: apps are found by their files, which are never run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from isowsgi.cli.initial import init
from isowsgi.configuration import load
from isowsgi.importing import projects

BOOM = "raise SystemExit('it was run')\n"

FILES = {
    "shop/manage.py": BOOM,
    "shop/shop/__init__.py": "",
    "shop/shop/wsgi.py": "from django.core.wsgi import get_wsgi_application\n" + BOOM + "application = get_wsgi_application()\n",
    "blog/app.py": "from flask import Flask\n" + BOOM + "app = Flask(__name__)\n",
    "notes/notes/__init__.py": BOOM + "def create_app(config=None):\n    pass\n",
    "needs/needs/__init__.py": "def create_app(config):\n    pass\n",
    "old/site.wsgi": BOOM,
    "hero/Procfile": "release: ./x\nweb: gunicorn --workers 2 hero.wsgi --log-file -\n",
    "hero/hero/wsgi.py": BOOM,
    "plain/wsgi.py": "def application(environ, start_response):\n    pass\n",
    "emperor/uwsgi.ini": "[uwsgi]\nmodule = tower:app\nenv = A=b\n",
    "broken/app.py": "def (:\n",
    "library/setup.py": "",
    "library/tests/app.py": "app = Flask(__name__)\n",
    ".hidden/app.py": "app = Flask(__name__)\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_apps_of_each_kind_are_found_and_none_is_run(folder: Path) -> None:
    mounts = {mount.pattern: mount.app for mount in projects.propose(str(folder)).mounts}

    assert mounts == {
        "/blog": "app:app",
        "/emperor": "tower:app",
        "/hero": "hero.wsgi:application",
        "/notes": "notes:create_app()",
        "/old": str(folder / "old/site.wsgi"),
        "/plain": "wsgi:application",
        "/shop": "shop.wsgi:application",
    }


def test_what_is_printed_is_a_config_file_without_faults(folder: Path) -> None:
    result = CliRunner().invoke(init, [str(folder)])
    (folder / "isowsgi.toml").write_text(result.stdout)

    assert result.exit_code == 0
    assert len(load(folder / "isowsgi.toml").mounts) == 7


def test_a_project_alone_is_mounted_at_the_root(folder: Path) -> None:
    assert [mount.pattern for mount in projects.propose(str(folder / "shop")).mounts] == ["/"]


def test_the_venv_beside_a_project_is_its_venv(folder: Path) -> None:
    (folder / "blog/.venv").mkdir()
    (folder / "blog/.venv/pyvenv.cfg").write_text("version = 3.9.1\n")
    [mount] = projects.propose(str(folder / "blog")).mounts

    assert mount.settings["venv"] == str(folder / "blog/.venv")
    # Of another Python, and without one of its own here: a comment says why it is not taken.
    assert "# venv = " in CliRunner().invoke(init, [str(folder / "blog")]).stdout


def test_yes_writes_the_file_and_overwrites_none(folder: Path) -> None:
    assert CliRunner().invoke(init, ["--yes", str(folder)]).exit_code == 0
    written = (folder / "isowsgi.toml").read_text()
    refused = CliRunner().invoke(init, ["--yes", str(folder)])

    assert refused.exit_code == 2
    assert "isowsgi.toml: expected no such file" in refused.stderr
    assert (folder / "isowsgi.toml").read_text() == written


def test_a_folder_without_a_project_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(init, [str(tmp_path)])

    assert result.exit_code == 2
    assert "expected a project: manage.py with a wsgi.py" in result.stderr
