"""Several servers behind a real HAProxy, configured by isowsgi: each gets what it can serve, and nothing is lost as they leave."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.command import call
from tests.conftest import DEADLINE_S, Server, eventually, running_server

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

CONFIG = """
    [mounts]
    "/a" = "hello"
    "/b" = "hello"
    "b.example.com/" = "hello"
    "/-" = { app = "isowsgi.status:application", isolation = "main" }

    [worker]
    lame_duck = 3
    """

# Longer than two checks of a mount take on a busy machine, so that HAProxy sees who leaves before they are gone.
INTERVAL_S = 0.2

TIMES = "defaults\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n    timeout check 10s\n"


class Balancer:
    """A running HAProxy."""

    def __init__(self, folder: Path, text: str, listener: socket.socket) -> None:
        self.port = listener.getsockname()[1]
        # It says which backend and which server has answered.
        shown = re.sub(r"(?m)^    balance", "    http-response set-header X-Served-By %[be_name]/%[srv_name]\n    balance", text)
        (folder / "haproxy.cfg").write_text(TIMES + shown)
        assert HAPROXY is not None, "checked by pytestmark"
        command = [HAPROXY, "-db", "-f", "haproxy.cfg"]
        self.process = subprocess.Popen(command, cwd=folder, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)

    def get(self, path: str, host: str = "localhost") -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers={"Host": host}, timeout=DEADLINE_S)

    def servers_of(self, path: str) -> set[str]:
        """Return who answers, asked for several times in a row."""
        served = (self.get(path).headers.get("X-Served-By", "nobody") for _ in range(8))
        return {each.partition("/")[2] for each in served}

    def wait_for_servers(self, path: str, names: set[str]) -> None:
        eventually(lambda: self.servers_of(path) == names, f"{path} by {names}")


class Load:
    """Clients that ask without an end; what they are answered is counted by path and status, "failed" if there is no answer."""

    def __init__(self, balancer: Balancer, paths: list[str]) -> None:
        self.answers: Counter[tuple[str, int | str]] = Counter()
        self._balancer = balancer
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[path]) for path in paths]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, path: str) -> None:
        while not self._is_over.is_set():
            try:
                self.answers[path, self._balancer.get(path).status_code] += 1
            except requests.RequestException:
                self.answers[path, "failed"] += 1


@contextmanager
def behind_a_balancer(folder: Path, count: int) -> Iterator[tuple[Balancer, list[Server]]]:
    with ExitStack() as stack:
        servers = []
        for number in range(count):
            (folder / f"web{number}").mkdir()
            starting = running_server(folder / f"web{number}", CONFIG, "--graceful-timeout", "60", wait_for=0)
            servers.append(stack.enter_context(starting))
        for server in servers:
            server.wait_until_serving(4)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.set_inheritable(True)
        places = ",".join(f"web{number}=127.0.0.1:{server.port}" for number, server in enumerate(servers))
        options = ("--servers", places, "--interval", str(INTERVAL_S), "--bind", f"fd@{listener.fileno()}")
        made = call(servers[0].folder, "export", "haproxy", *options)
        assert made.returncode == 0, made.stderr
        balancer = Balancer(folder, made.stdout, listener)
        try:
            everybody = {f"web{number}" for number in range(count)}
            eventually(lambda: _is_up(balancer), "haproxy")
            balancer.wait_for_servers("/a", everybody)
            yield balancer, servers
        finally:
            balancer.process.terminate()
            balancer.process.wait(DEADLINE_S)


def _is_up(balancer: Balancer) -> bool:
    assert balancer.process.poll() is None, "haproxy ended"
    try:
        return balancer.get("/a").status_code == 200
    except requests.ConnectionError:
        return False


def test_each_server_gets_what_it_can_serve_and_leaves_without_a_lost_request(tmp_path: Path) -> None:
    with behind_a_balancer(tmp_path, 3) as (balancer, servers), Load(balancer, ["/a", "/b"]) as load:
        # One mount of one server is taken out of service: the server keeps the requests of the others.
        assert call(servers[0].folder, "stop", "/a", "--drain", "3").returncode == 0
        balancer.wait_for_servers("/a", {"web1", "web2"})
        balancer.wait_for_servers("/b", {"web0", "web1", "web2"})
        # It comes back.
        assert call(servers[0].folder, "start", "/a").returncode == 0
        balancer.wait_for_servers("/a", {"web0", "web1", "web2"})
        # A server stops.
        assert servers[1].stop() == 0
        balancer.wait_for_servers("/a", {"web0", "web2"})

        assert set(load.answers) == {("/a", 200), ("/b", 200)}

        # A server is killed: what it was about to answer is lost, and nothing after that.
        for pid in [servers[2].process.pid, *servers[2].workers()]:
            os.kill(pid, signal.SIGKILL)
        balancer.wait_for_servers("/a", {"web0"})
    lost = sum(count for (_, status), count in load.answers.items() if status != 200)
    assert lost <= 2  # one of each client


def test_the_balancer_routes_as_isowsgi_does(tmp_path: Path) -> None:
    with behind_a_balancer(tmp_path, 1) as (balancer, _):
        asked = {
            ("/a", "localhost"): "a",
            ("/a/x?y", "localhost"): "a",
            ("/%61/x", "localhost"): "a",
            ("/ab", "localhost"): None,
            ("/b", "B.Example.COM:80"): "b-example-com",
            ("/b", "other.example.com"): "b",
            ("/-/ready", "localhost"): None,
            ("/%2D/ready", "localhost"): None,
        }
        for (path, host), backend in asked.items():
            answer = balancer.get(path, host)
            assert answer.headers.get("X-Served-By") == (backend and f"{backend}/web0"), (path, host)
            assert answer.status_code == (200 if backend else 404)
