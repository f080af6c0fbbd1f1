"""Websockets through `gunicorn.socket`, with the libraries that Flask apps use, in each isolation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

from isowsgi.shared import interpreters
from tests.conftest import DEADLINE_S, Server, StartServer, eventually, running_server

ISOLATIONS = list(dict.fromkeys([interpreters.best_isolation(), interpreters.PROCESS]))


@contextmanager
def connected(server: Server, path: str) -> Iterator[websocket.WebSocket]:
    ws = websocket.create_connection(f"ws://{server.host}:{server.port}{path}", timeout=DEADLINE_S)
    try:
        yield ws
    finally:
        ws.close()


def echoes(ws: websocket.WebSocket, text: str) -> bool:
    ws.send(text)
    return bool(ws.recv() == text)


@pytest.fixture(scope="module", params=ISOLATIONS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = f"""
        [mounts]
        "/" = {{ app = "websockets", isolation = "{request.param}", threads = 8, request_timeout = 0.6, body_timeout = 0.6 }}
    """
    with running_server(tmp_path_factory.mktemp("websockets"), config) as server:
        yield server


@pytest.mark.parametrize("path", ["/echo", "/by-hand"])
def test_websockets_and_requests_come_and_go_side_by_side(server: Server, path: str) -> None:
    """A library closed its socket, and with it the next client's connection, which had got the number."""
    lost: list[str] = []

    def ask(number: int) -> None:
        for _ in range(15):
            try:
                if number % 2:
                    with connected(server, path) as ws:
                        assert echoes(ws, "a")
                else:
                    assert server.get("/").status_code == 200
            except Exception as exc:
                lost.append(repr(exc))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert lost == []
    assert "Traceback" not in server.log()


def test_a_websocket_on_which_nobody_speaks_stays_open(server: Server) -> None:
    """request_timeout and body_timeout are for ordinary requests: one of them runs out meanwhile."""
    with connected(server, "/echo") as ws:
        assert echoes(ws, "a")
        with server.connect() as quiet:
            quiet.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
            assert quiet.recv(1000)  # 405 or 408
        ws.settimeout(1.5)
        with pytest.raises(websocket.WebSocketTimeoutException):
            ws.recv()
        ws.settimeout(DEADLINE_S)
        assert echoes(ws, "b")
    assert "timed out" not in server.log()


def test_a_reload_lets_a_websocket_go_on_and_ends_it_with_the_drain(serve: StartServer, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    touched.touch()
    server = serve(f"[mounts]\n'/' = {{ app = 'websockets', touch = '{touched}' }}\n", "--graceful-timeout", "3")
    with connected(server, "/echo") as ws:
        assert echoes(ws, "a")
        touched.write_text("")

        eventually(lambda: server.get("/").text == "generation 2", "the new generation")
        assert echoes(ws, "b")
        with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
            ws.recv()
        server.wait_for_log("#1: ended")
    assert "stuck" not in server.log()
    assert "did not end" not in server.log()
