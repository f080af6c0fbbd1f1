"""Several servers behind a real balancer, configured by isowsgi: each gets what it can serve, and nothing is lost as they leave."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import random
import re
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import pytest

from isowsgi import configuration
from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.checks import pattern as read_pattern
from isowsgi.configuration.faults import Fault
from isowsgi.exporting.backends import backends
from isowsgi.shared.routing import Route, Router
from tests import balancers
from tests.command import call
from tests.conftest import DEADLINE_S, WHOLE, Server, eventually, running_server
from tests.load import PAUSE_S

CONFIG = """
    [mounts]
    "/a" = "hello"
    "/b" = "hello"
    "b.example.com/" = { app = "hello", hosts = ["[::1]"] }
    "*.example.org/" = "hello"
    "/-" = { app = "isowsgi.status:application", isolation = "main" }

    [worker]
    lame_duck = 3
    """
MOUNTS = 5

# Longer than two checks of a mount take on a busy machine, so that HAProxy sees who leaves before they are gone.
INTERVAL_S = 0.2


class Answer(NamedTuple):
    status: int
    backend: str
    server: str


class Client(http.client.HTTPConnection):
    """A client of a balancer.

    Args:
        place: a port, or the path of a Unix socket, which no other test can have taken.
    """

    def __init__(self, place: str | int) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._place = place

    def connect(self) -> None:
        if isinstance(self._place, int):
            self.sock = socket.create_connection(("127.0.0.1", self._place), DEADLINE_S)
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self._place)


# How each kind listens on a Unix socket, if it can, and where it is made to say which backend, and which server, has answered.
BIND = {"haproxy": "{}", "caddy": ":80", "nginx": "unix:{}", "traefik": "web"}
SHOWN = {
    "haproxy": (r"(?m)^    balance", "    http-response set-header X-Served-By %[be_name]/%[srv_name]\n    balance"),
    "caddy": (r"(?m)^(\t\treverse_proxy (?:@\d+-([a-z0-9-]+) )?{)", r"\1\n\t\t\theader_down X-Served-By \2/"),
    "nginx": (r"(?m)^    merge_slashes", "    add_header X-Served-By $proxy_host/ always;\n    merge_slashes"),
    "traefik": (
        r'(?s)service = "([a-z0-9-]+)"\n(priority = \d+)\nmiddlewares = \["(isowsgi-again)"\]\n',
        r'service = "\1"\n\2\nmiddlewares = ["\3", "by-\1"]\n',
    ),
}
# What that names, for each mount.
SHOWN_BY = '\n[http.middlewares.by-{0}.headers.customResponseHeaders]\nX-Served-By = "{0}/"\n'


class Balancer:
    """A running balancer, in a folder with a short path."""

    def __init__(self, kind: str, folder: Path, text: str) -> None:
        self._place: str | int | None = None if kind == "traefik" else str(folder / "socket")
        # Who finds no server shall say so at once.
        text = re.sub(*SHOWN[kind], text).replace("lb_try_duration 5s", "lb_try_duration 0s")
        if kind == "caddy":
            text = re.sub("(?m)^:80 {", f":80 {{\n\tbind unix/{self._place}", text)
        elif kind == "traefik":
            text += "".join(map(SHOWN_BY.format, sorted(set(re.findall('"by-(.+)"', text)))))
        path = balancers.written(kind, folder, text)
        if kind == "caddy":
            path.write_text(path.read_text().replace("{\n", "{\n\tadmin off\n", 1))
        self.process = balancers.start(kind, path)

    def get(self, path: str, host: str = "localhost") -> Answer:
        assert self._place is not None, "is_up() finds it"
        connection = Client(self._place)
        try:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        # Traefik adds the field to its own answers too.
        served_by = answer.headers.get("X-Served-By", "/") if "Server" in answer.headers else "/"
        backend, _, server = served_by.removeprefix("isowsgi-").partition("/")
        return Answer(answer.status, backend, server)

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the balancer ended"
        try:
            self._place = self._place or balancers.port_of(self.process)
            return self._place is not None and self.get("/a").status == 200
        except OSError:
            return False

    def servers_of(self, path: str) -> set[str]:
        """Return who answers, asked for several times in a row."""
        return {self.get(path).server for _ in range(8)}

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
        while not self._is_over.wait(PAUSE_S):
            try:
                self.answers[path, self._balancer.get(path).status] += 1
            except (OSError, http.client.HTTPException):
                self.answers[path, "failed"] += 1


@contextmanager
def before(kind: str, servers: list[Server], *ports: int) -> Iterator[Balancer]:
    """Run a balancer with what the command writes for it.

    Args:
        ports: of more servers.
    """
    interval_s = 1.0 if kind == "traefik" else INTERVAL_S  # Traefik takes a server out for one check that takes as long
    with balancing(kind, servers[0].folder, *(server.port for server in servers), *ports, interval_s=interval_s) as balancer:
        yield balancer


@contextmanager
def balancing(kind: str, site: Path, *ports: int, interval_s: float = INTERVAL_S) -> Iterator[Balancer]:
    """Run a balancer with what the command writes for a folder's `isowsgi.toml` and servers at these ports."""
    balancers.program(kind)
    with tempfile.TemporaryDirectory(prefix="isowsgi-") as folder:
        places = ",".join(f"web{number}=127.0.0.1:{port}" for number, port in enumerate(ports))
        bind = BIND[kind].format(f"{folder}/socket")
        made = call(site, "export", kind, "--servers", places, "--interval", str(interval_s), "--bind", bind)
        assert made.returncode == 0, made.stderr
        balancer = Balancer(kind, Path(folder), made.stdout)
        try:
            eventually(balancer.is_up, kind)
            yield balancer
        finally:
            balancer.process.terminate()
            balancer.process.wait(DEADLINE_S)


@contextmanager
def several(folder: Path, count: int) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = []
        for number in range(count):
            (folder / f"web{number}").mkdir()
            starting = running_server(folder / f"web{number}", CONFIG, "--graceful-timeout", "60", wait_for=0)
            servers.append(stack.enter_context(starting))
        for server in servers:
            server.wait_until_serving(MOUNTS)
        yield servers


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), CONFIG.replace("lame_duck = 3", ""), wait_for=MOUNTS) as server:
        yield server


def test_each_server_gets_what_it_can_serve_and_leaves_without_a_lost_request(tmp_path: Path) -> None:
    balancers.program("haproxy")
    with several(tmp_path, 3) as servers, before("haproxy", servers) as balancer:
        balancer.wait_for_servers("/a", {"web0", "web1", "web2"})
        with Load(balancer, ["/a", "/b"]) as load:
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


# By path and host: the mount's backend. None: no backend, and 404 or 400.
ROUTES = {
    ("/a", "localhost"): "a",
    ("/a/x?y", "localhost"): "a",
    ("/%61/x", "localhost"): "a",
    ("/a%2Fx", "localhost"): "a",
    ("/ab", "localhost"): None,
    ("/A", "localhost"): None,
    ("/b", "B.Example.COM:80"): "b-example-com",
    ("/a", "b.example.com."): "b-example-com",
    ("/a", "b.example.com:x:y]"): "b-example-com",
    ("/a", "[::1]:80"): "b-example-com",
    ("/a", "[::1]"): "b-example-com",
    ("/b", "other.example.com"): "b",
    ("/b", "x.example.org"): "any-example-org",
    ("/b", "x.y.example.org"): "b",
    ("/-/ready", "localhost"): None,
    ("/%2D/ready", "localhost"): None,
    ("/-%2Fready", "localhost"): None,
    ("/-#/x", "localhost"): None,
    ("/-/metrics?/../../a", "localhost"): None,
    ("/-/ready", "b.example.com"): "b-example-com",
}


@pytest.mark.parametrize("kind", balancers.RUNNING_KINDS)
def test_the_balancer_routes_as_isowsgi_does(server: Server, kind: str) -> None:
    with before(kind, [server]) as balancer:
        for (path, host), backend in ROUTES.items():
            answer = balancer.get(path, host)
            assert answer.backend == (backend or ""), (path, host)
            assert (answer.status == 200) == (backend is not None), (path, host, answer)


@pytest.mark.parametrize("kind", ["haproxy", "caddy", "traefik"])
def test_a_mount_that_cannot_be_served_is_found_by_its_check(server: Server, kind: str) -> None:
    with before(kind, [server]) as balancer:
        try:
            assert call(server.folder, "stop", "/a").returncode == 0
            eventually(lambda: balancer.get("/a").backend == "", "nobody is asked for /a")
            assert balancer.get("/b").status == 200
        finally:
            call(server.folder, "start", "/a")
        eventually(lambda: balancer.get("/a").status == 200, "/a is served again")


class Crowd(http.server.ThreadingHTTPServer):
    """Servers that see checks come and go."""

    daemon_threads = True
    request_queue_size = 1000  # all checks come at once

    def handle_error(self, *_: object) -> None:
        pass


class Able(http.server.BaseHTTPRequestHandler):
    """A server that answers anything."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


# What means something in one of the balancers' files, in their expressions, in percent-encoding, or to who compares without regard to case.
PARTS = [
    *"abzAK09/.-_~+*()[]{}$^|`'\"&;,:@=!\\<>%\u00e9\u4e2d\u0130\u212a\U0001f600",
    "..",
    "%2",
    "%zz",
    "\\Q",
    "\\n",
    "(?i)",
    "x{41}",
    "'\\''",
]
PARTS += ["${HOME}", "{$HOME}", "$host", "{http.request.host}", "{{"]
HOSTS = ["", "", "", "a.example.com", "*.example.com", "example.com", "*.b.example.com", "[::1]", "127.0.0.1", "under_score.example"]
HOSTS += ["*.com", "xn--bcher-kva.example", "1.2", "-x-.example.com"]


def odd_patterns(chance: random.Random) -> list[Pattern]:
    """Return many patterns, and none for all that there is."""
    found = [read_pattern("/a")]
    while len(found) < 80:
        with suppress(Fault):
            pattern = read_pattern(f"{chance.choice(HOSTS)}/{''.join(chance.choices(PARTS, k=chance.randrange(7)))}")
            found += [pattern] if pattern.host or pattern.path else []
    return list(dict.fromkeys(found))


def request_for(pattern: Pattern, chance: random.Random) -> tuple[str, str]:
    """Return a path and a Host field that are at a pattern, or nearly so."""
    path = pattern.path or "/y"
    path = chance.choice([path, path + "/", path + "/x", path + "x", path[:-1], path + "/" + chance.choice(PARTS), path.swapcase()])
    host = (pattern.host or chance.choice(["localhost", "other.example"])).replace("*", chance.choice(["c", "c.d", "_x", "a", "b"]))
    host = chance.choice([host, host.upper(), host + ":80", host if host.endswith("]") else host + "."])
    if re.search(r"//|/\.\.?(/|$)", path):  # nginx and Traefik resolve these
        path = pattern.path
    return quote(path or "/", safe=chance.choice(["/", "/-._~!$&'()*+,;=:@"])), host


@pytest.mark.skipif(not WHOLE, reason="for whole runs: ISOWSGI_WHOLE=1")
@pytest.mark.parametrize("kind", balancers.RUNNING_KINDS)
def test_patterns_with_any_characters_are_routed_as_isowsgi_does(tmp_path: Path, kind: str) -> None:
    """A host that begins with "-" was an option to HAProxy, and Traefik looks at an IPv6 address without its brackets."""
    chance = random.Random(20)
    patterns = odd_patterns(chance)
    app = '"wsgiref.simple_server:demo_app"'
    mounts = "\n".join(f"{json.dumps(pattern.host + (pattern.path or '/'), ensure_ascii=False)} = {app}" for pattern in patterns)
    (tmp_path / "isowsgi.toml").write_text(f'[mounts]\n"/-/page" = "isowsgi.status:application"\n{mounts}\n', encoding="utf-8")
    config = configuration.load(tmp_path / "isowsgi.toml")
    names = [backend.name for backend in backends(config.mounts)]
    router = Router(Route(mount.number, mount.host, mount.prefix) for mount in config.mounts)
    with ExitStack() as stack:
        able = stack.enter_context(Crowd(("127.0.0.1", 0), Able))
        threading.Thread(target=able.serve_forever).start()
        stack.callback(able.shutdown)
        balancer = stack.enter_context(balancing(kind, tmp_path, able.server_port, interval_s=DEADLINE_S))
        for pattern in patterns * 3:
            path, host = request_for(pattern, chance)
            mount = router.match(host, unquote_to_bytes(path).decode("latin-1"))
            answer = balancer.get(path, host)
            assert answer[:2] == ((404, "") if mount is None else (200, names[mount])), (path, host)


class Unable(http.server.BaseHTTPRequestHandler):
    """A server that answers as isowsgi does for a mount that it cannot serve."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_nginx_sends_a_get_that_a_server_cannot_serve_to_another(server: Server) -> None:
    """It asks no server how it is: this is all that it has."""
    with ExitStack() as stack:
        unable = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unable))
        unable.daemon_threads = True
        threading.Thread(target=unable.serve_forever).start()
        stack.callback(unable.shutdown)
        balancer = stack.enter_context(before("nginx", [server], unable.server_port))

        answers = [balancer.get("/a").status for _ in range(12)]

    assert answers == [200] * 12
    assert 1 <= Unable.asked < 12, "tried in vain, and then left alone for a while"
