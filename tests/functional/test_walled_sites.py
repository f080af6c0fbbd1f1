"""The sites of docs/howto/walls.md, run with the config that the page shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from isowsgi.shared import landlock
from tests import otherusers
from tests.conftest import APPS, DEADLINE_S, ROOT, WHOLE, Server, running_server
from tests.functional.test_auto import venv_with

PAGE = ROOT / "docs" / "howto" / "walls.md"

# Packages of the index are there where others are tried, see test_auto.
HAS_PACKAGES = bool(os.environ.get("ISOWSGI_PACKAGES")) or (WHOLE and sys.version_info[:2] == (3, 14))

pytestmark = pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")


def config(folder: Path) -> str:
    """Return the page's config file for a folder, with the mount that needs packages only where they are."""
    text = PAGE.read_text().split("```toml\n")[1].partition("```")[0].replace("/srv/sites", str(folder))
    if not HAS_PACKAGES:
        return re.sub(r'\[mounts\."/notes"\].*?\n\n', "", text, flags=re.DOTALL)
    venv = venv_with("walled", "flask", "sqlalchemy")
    return text.replace('pythonpath = "notes"', f'pythonpath = "notes"\nvenv = "{venv}"')


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("walled")
    for path in ("notes/db", "shop/db", "shop/media"):
        (folder / path).mkdir(parents=True)
    for site in ("notes", "shop"):
        shutil.copy(APPS / f"walled_{site}.py", folder / site)
    (folder / "shop" / "db" / "secret").write_text("the shop's")
    with running_server(folder, config(folder), wait_for=1 + HAS_PACKAGES) as server:
        yield server


@pytest.mark.parametrize(("size", "kind"), [(1000, "InMemoryUploadedFile"), (3_000_000, "TemporaryUploadedFile")])
def test_a_walled_django_site_keeps_uploads_and_a_database(server: Server, size: int, kind: str) -> None:
    answer = requests.post(f"{server.url}/shop/upload", files={"file": (f"{size}.png", bytes(size))}, timeout=DEADLINE_S)
    assert answer.status_code == 200, server.log()
    told = answer.json()

    assert (told["in"], told["name"], told["uploads"] > 0) == (kind, f"{size}.png", True)
    assert server.get(f"/shop/media/{size}.png").content == bytes(size)
    assert (server.folder / "shop" / "db" / "shop.sqlite3").stat().st_mode & 0o007 == 0


def test_it_reaches_nothing_beside_what_its_config_names(server: Server) -> None:
    told = server.get(f"/shop/peek?path={server.folder}/isowsgi.toml").json()

    assert told == {"read": "Permission denied", "write": "Permission denied"}


@pytest.fixture
def sites() -> Iterator[Path]:
    """A folder for sites that other users may enter, as they may not enter pytest's."""
    with tempfile.TemporaryDirectory(prefix="isowsgi-sites-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_check_says_what_the_sandbox_would_refuse_a_site_and_what_to_add(sites: Path, tmp_path: Path) -> None:
    site = sites / "shop"
    for path in ("shop/db", "shop/media"):
        (sites / path).mkdir(parents=True)
        (sites / path).chmod(0o777)  # the sandbox alone is in its way
    shutil.copy(APPS / "walled_shop.py", site)
    text = config(sites).replace('write = ["shop/db", "shop/media"]', 'write = ["shop/media"]')
    assert "shop/db" not in text
    text += 'user = "nobody"\n' if otherusers.IS_POSSIBLE else ""  # the last mount's; it has its own folder for temporary files, too
    (sites / "fewer.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "isowsgi", "check", "fewer.toml", "--mount", "/shop", "--json"],
        cwd=sites, env={**os.environ, "PYTHONPATH": str(ROOT), "ISOWSGI_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    [mount] = json.loads(done.stdout)["mounts"]
    assert mount["warnings"] == [f"its sandbox refuses this: it keeps a database in {site}/db/shop.sqlite3: add '{site}/db' to write"]


def test_the_log_says_what_to_add_to_the_sandbox_when_a_request_fails_of_it(server: Server) -> None:
    assert server.get("/shop/note").status_code == 500

    path = server.folder / "shop" / "notes.txt"
    text = r"in GET /shop/note; add it to sandbox\.read, or its folder to sandbox\.write, if the app needs it"
    server.wait_for_log(rf"/shop #1: its sandbox may have refused this: PermissionError: .*'{path}' {text}")


@pytest.mark.skipif(not HAS_PACKAGES, reason="installs packages; with ISOWSGI_PACKAGES=1")
def test_a_walled_flask_site_with_sqlalchemy_keeps_its_database_and_sees_no_other(server: Server) -> None:
    counts = [requests.post(f"{server.url}/notes/", data="a", timeout=DEADLINE_S).json() for _ in range(3)]

    assert counts == [1, 2, 3]
    assert server.get(f"/notes/peek?path={server.folder}/shop/db/secret").json() == "Permission denied"
