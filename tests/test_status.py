"""The status page's own code: who may see it, and what it answers. A browser looks at it in tests/functional/test_status.py."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from isowsgi.shared.board import Board
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.status.access import Access
from isowsgi.status.app import StatusPage, application
from tests.test_metrics import WORKER
from tests.test_snapshot import mount, worker


def environ(peer: str, host: str = "localhost:8000", **fields: str) -> dict[str, Any]:
    return {"REMOTE_ADDR": peer, "HTTP_HOST": host, **fields}


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_let_in(peer: str) -> None:
    assert Access([], []).refusal(environ(peer)) is None


@pytest.mark.parametrize("peer", ["10.0.0.1", "203.0.113.5", "2001:db8::1", "::ffff:10.0.0.1", "", "not an address"])
def test_nobody_else_is_let_in_unasked(peer: str) -> None:
    assert Access([], []).refusal(environ(peer)) is not None


@pytest.mark.parametrize(
    ("allow", "peer"), [("10.0.0.0/8", "10.1.2.3"), ("10.0.0.0/8", "::ffff:10.1.2.3"), ("2001:db8::/32", "2001:db8::7"), ("unix", "")]
)
def test_whom_the_config_allows_is_let_in(allow: str, peer: str) -> None:
    assert Access([allow], []).refusal(environ(peer)) is None
    assert Access(["192.0.2.0/24"], []).refusal(environ(peer)) is not None


@pytest.mark.parametrize("field", ["HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP"])
def test_what_a_proxy_on_this_machine_passes_on_is_not_from_this_machine(field: str) -> None:
    """Else everybody would be let in as soon as there is an nginx."""
    assert "proxy" in str(Access([], []).refusal(environ("127.0.0.1", **{field: "203.0.113.5"})))


def test_a_header_lets_nobody_in() -> None:
    assert Access(["10.0.0.0/8"], []).refusal(environ("203.0.113.5", HTTP_X_FORWARDED_FOR="10.0.0.1")) is not None


def test_a_proxy_that_the_config_names_is_let_in_with_whom_it_asks_for() -> None:
    assert Access(["127.0.0.1"], []).refusal(environ("127.0.0.1", HTTP_X_FORWARDED_FOR="203.0.113.5")) is None


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7", "app.localhost", "web1.example", ""]
)
def test_names_that_cannot_be_rebound_and_those_of_the_config_are_ours(host: str) -> None:
    assert Access([], ["web1.example"]).refusal(environ("127.0.0.1", host)) is None
    assert Access([], []).refusal(environ("127.0.0.1", socket.gethostname())) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[evil", "a:b:c"]
)
def test_another_name_that_leads_here_is_refused(host: str) -> None:
    """DNS rebinding: a page of evil.example reads what the browser on this machine may read."""
    assert "not known" in str(Access([], []).refusal(environ("127.0.0.1", host)))


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    os.close(board.fd)


@pytest.fixture
def region(board: Board) -> Scoreboard:
    return worker(board, mount("/a"), mount("/b", "failed"), **WORKER)


@pytest.fixture
def client(board: Board) -> Client:
    return Client(StatusPage(board, Access([], [])))


def get(client: Client, path: str, **options: Any) -> TestResponse:
    return client.get(path, base_url="http://localhost/-/isowsgi", environ_overrides={"REMOTE_ADDR": "127.0.0.1"}, **options)


def test_the_page_and_its_files_name_nothing_from_elsewhere(client: Client, region: Scoreboard) -> None:
    for path in ("/", "/page.css", "/page.js"):
        response = get(client, path)
        assert response.status_code == 200
        urls = [word for word in response.text.split("'") if word.startswith("http") and "www.w3.org/2000/svg" not in word]
        assert urls == []
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_without_a_slash_the_page_sends_to_its_folder(client: Client) -> None:
    """Its links are relative. The answer names no host, for that may be anything."""
    response = client.get("", base_url="http://localhost/-/isowsgi", environ_overrides={"REMOTE_ADDR": "127.0.0.1", "PATH_INFO": ""})

    assert (response.status_code, response.headers["Location"]) == (308, "/-/isowsgi/")


def test_the_json_is_the_snapshot(client: Client, region: Scoreboard) -> None:
    taken = get(client, "/status.json").get_json()

    assert [one["pattern"] for one in taken["mounts"]] == ["/a", "/b"]


def test_metrics_are_in_prometheus_format(client: Client, region: Scoreboard) -> None:
    response = get(client, "/metrics")

    assert response.content_type.startswith("text/plain; version=")
    assert 'isowsgi_mount_ready{mount="/b"} 0.0' in response.text


def test_ready_is_of_all_mounts_or_of_one(client: Client, region: Scoreboard) -> None:
    answers = [get(client, f"/ready{query}") for query in ("", "?mount=/a", "?mount=/b", "?mount=/nope")]

    assert [answer.status_code for answer in answers] == [503, 200, 503, 404]
    assert answers[0].text == "/b: not ready\n"


def test_ready_is_nothing_while_no_worker_accepts(client: Client) -> None:
    assert get(client, "/ready").status_code == 503


def test_live_is_false_once_the_workers_main_interpreter_is_silent(board: Board, client: Client) -> None:
    worker(board, mount("/a"), **{**WORKER, "pid": os.getpid(), "updated": 2.0})

    assert get(client, "/live").status_code == 503


def test_live_is_true_while_the_worker_reports(board: Board, client: Client) -> None:
    import time

    worker(board, mount("/a"), **{**WORKER, "pid": os.getpid(), "updated": time.time()})

    assert get(client, "/live").text == "alive\n"


def test_nothing_can_be_changed(client: Client, region: Scoreboard) -> None:
    for path in ("/", "/status.json", "/ready"):
        response = client.post(path, base_url="http://localhost", environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
        assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")


def test_a_refusal_says_how_to_be_let_in_and_nothing_else(client: Client, region: Scoreboard) -> None:
    response = client.get("/status.json", base_url="http://localhost", environ_overrides={"REMOTE_ADDR": "10.0.0.1"})

    assert response.status_code == 403
    assert response.text == "10.0.0.1 is not allowed; allow in [status] of isowsgi.toml lists who is\n"


def test_elsewhere_than_in_isowsgi_the_app_says_what_is_missing() -> None:
    response = Client(application).get("/")

    assert response.status_code == 500
    assert "isowsgi.toml" in response.text
