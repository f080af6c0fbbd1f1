"""Websockets through `gunicorn.socket`, with the libraries that Flask apps use, in each isolation, side by side on one server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
import socketio
import websocket

from isowsgi.shared import interpreters
from tests.command import call
from tests.conftest import DEADLINE_S, Server, StartServer, eventually, shared_server

ISOLATIONS = list(dict.fromkeys([interpreters.best_isolation(), interpreters.SHARED_GIL, interpreters.PROCESS]))
# Long enough for an ordinary request on a busy machine. A body has half of it, so that it is what runs out where both could.
LIMIT_S = 2

CONFIG = "[defaults]\nthreads = 8\n[mounts]\n" + "".join(
    f"""
    "/{isolation}" = {{ app = "websockets", isolation = "{isolation}", request_timeout = {LIMIT_S}, body_timeout = {LIMIT_S / 2} }}
    "/io/{isolation}" = {{ app = "socketio_site", isolation = "{isolation}" }}
    """
    for isolation in ISOLATIONS
)

server = shared_server(CONFIG, "--graceful-timeout", "2", wait_for=2 * len(ISOLATIONS))


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


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("path", ["/echo", "/by-hand"])
def test_websockets_and_requests_come_and_go_side_by_side(server: Server, isolation: str, path: str) -> None:
    """A library closed its socket, and with it the next client's connection, which had got the number."""
    lost: list[str] = []

    def ask(number: int) -> None:
        for _ in range(15):
            try:
                if number % 2:
                    with connected(server, f"/{isolation}{path}") as ws:
                        assert echoes(ws, "a")
                else:
                    assert server.get(f"/{isolation}/").status_code == 200
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
    """request_timeout and body_timeout are for ordinary requests: both run out meanwhile. All isolations at once, as it is a wait."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(connected(server, f"/{isolation}/echo")) for isolation in ISOLATIONS]
        assert all(echoes(ws, "a") for ws in sockets)
        for isolation in ISOLATIONS:
            quiet = stack.enter_context(server.connect())
            quiet.sendall(f"POST /{isolation}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".encode())
            assert quiet.recv(1000)  # 405 or 408
        for number, ws in enumerate(sockets):
            ws.settimeout(0.1 if number else LIMIT_S + 0.5)
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


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]], ids=["websocket", "polling", "upgraded"])
def test_a_socketio_client_is_answered_at_once_and_told_in_the_background(server: Server, isolation: str, transports: list[str]) -> None:
    with io_client(server, isolation, transports) as (client, told):
        assert client.call("ask", "hello", timeout=DEADLINE_S) == f"hello {transports[-1]}"
        eventually(lambda: sorted(told) == ["hello at once", "hello in the background"], "both events")

    assert "Traceback" not in server.log()


def test_a_socketio_client_comes_back_to_the_next_generation(server: Server) -> None:
    """Its websocket ends with the drain of the one before."""
    connects: list[str] = []
    with ExitStack() as stack:
        clients = {isolation: stack.enter_context(io_client(server, isolation, ["polling", "websocket"]))[0] for isolation in ISOLATIONS}
        for isolation, client in clients.items():
            client.on("connect", lambda isolation=isolation: connects.append(isolation))
            assert call(server.folder, "reload", f"/io/{isolation}").returncode == 0

        eventually(lambda: set(connects) == set(ISOLATIONS), "their next connections")
        for isolation, client in clients.items():
            assert client.call("ask", "again", timeout=DEADLINE_S).startswith("again ")
            assert server.get(f"/io/{isolation}/generation").text == "2"
            server.wait_for_log(rf"/io/{isolation} #1: ended")


@contextmanager
def io_client(server: Server, isolation: str, transports: list[str]) -> Iterator[tuple[socketio.Client, list[str]]]:
    """Connect a client; yield it with the events that it was told."""
    told: list[str] = []
    with requests.Session() as session:
        client = socketio.Client(reconnection_delay=0.1, reconnection_delay_max=0.1, http_session=session)
        client.on("told", told.append)
        client.connect(server.url, transports=transports, socketio_path=f"/io/{isolation}/socket.io", wait_timeout=DEADLINE_S)
        try:
            yield client, told
        finally:
            client.disconnect()
            client.shutdown()
