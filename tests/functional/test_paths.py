"""Paths: routing and the app see the same one, whatever bytes a client writes it in; every row of tests/paths.toml on real servers."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import APPS, ROOT, Server, running_server
from tests.raw import Client

DATA = tomllib.loads((ROOT / "tests" / "paths.toml").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = [row for section in DATA["section"] for row in section["row"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = "[defaults]\nthreads = 1\n[mounts]\n" + "".join(f"'{mount}' = 'hello:environ'\n" for mount in DATA["mounts"])
    with running_server(tmp_path_factory.mktemp("paths"), config, wait_for=len(DATA["mounts"])) as server:
        yield server


@pytest.fixture(scope="module")
def root_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("root"), '[mounts]\n"/" = "hello:environ"') as server:
        yield server


@pytest.fixture(scope="module")
def gthread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """gunicorn's own threaded worker with the same app."""
    arguments = ["-k", "gthread", "--threads", "2", "--pythonpath", str(APPS)]
    with running_server(tmp_path_factory.mktemp("gthread"), "[mounts]", *arguments, app="hello:environ", wait_for=0) as server:
        server.port = int(server.wait_for_log(r"Listening at: http://[\d.]+:(\d+)")[0])
        yield server


def seen_by_the_app(server: Server, row: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send a row's bytes; return the status, and the environ if an app was called."""
    host = row.get("host", "example.com")
    field = "" if host == "-" else f"Host: {host}\r\n"
    line = f"{row.get('method', 'GET')} {row['target']} HTTP/{row.get('version', '1.1')}\r\n"
    answer = server.exchange(f"{line}{field}Connection: close\r\n\r\n".encode("latin-1"))
    # No more of a refusal than its status: from Python 3.14 on the heads of gunicorn's error pages end in a bare line feed.
    status = int(answer.removeprefix(b"HTTP/1.1 ").removeprefix(b"HTTP/1.0 ")[:3])
    return status, json.loads(answer.partition(b"\r\n\r\n")[2]) if status == 200 else {}


def prefix_of(mount: str) -> str:
    """Return what SCRIPT_NAME is in a mount, in WSGI's form."""
    return mount[mount.find("/") :].rstrip("/").encode().decode("latin-1")


def test_a_request_reaches_the_mount_whose_path_it_is(server: Server) -> None:
    for row in ROWS:
        status, environ = seen_by_the_app(server, row)

        assert status == row.get("status", 200), row
        if status == 200:
            seen = (environ["isowsgi.mount"], environ["SCRIPT_NAME"], environ["PATH_INFO"])
            assert seen == (row["mount"], prefix_of(row["mount"]), row["path_info"]), row
            assert environ["RAW_URI"] == row["target"]


def test_an_app_at_the_root_sees_the_path_that_gunicorns_own_worker_shows_it(root_server: Server, gthread: Server) -> None:
    """Or the row says what differs, and the page why."""
    for row in ROWS:
        status, environ = seen_by_the_app(root_server, row)
        gunicorns_status, gunicorns_environ = seen_by_the_app(gthread, row)

        if "gthread" in row:
            assert [gunicorns_status, gunicorns_environ["PATH_INFO"]] == row["gthread"], row
            assert status == row["status"], row
            assert row["note"]
        else:
            assert status == gunicorns_status, row
            for key in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_METHOD", "SERVER_PROTOCOL"):
                assert environ.get(key) == gunicorns_environ.get(key), (key, row)


def test_a_path_is_routed_alike_first_and_later_on_a_connection(server: Server) -> None:
    """The acceptor looks at a connection's first request, an interpreter at those that follow."""
    rows = [row for row in ROWS if "mount" in row and row.get("version") != "1.0"]
    with Client(server) as client:
        for row in rows:
            client.send(f"{row.get('method', 'GET')} {row['target']} HTTP/1.1\r\nHost: {row.get('host', 'example.com')}\r\n\r\n")
            environ = json.loads(client.answer().body)
            assert (environ["isowsgi.mount"], environ["PATH_INFO"]) == (row["mount"], row["path_info"]), row


def test_the_page_is_fresh() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "paths_page.py"), "--check"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
