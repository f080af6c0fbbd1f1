"""No request reaches a mount that the path it shows to its app does not belong to, however it is written.

Judged by nothing but what the app sees: SCRIPT_NAME, PATH_INFO and the Host field must lead to the mount that was called. Requests are
generated to provoke two readings: encodings, slashes, dots, hosts in every form, absolute targets, SCRIPT_NAME fields, and several
requests on a connection. They go to an instance's own code with any table of mounts, and to a real server with a fixed one.
"""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from gunicorn.http.errors import ParseException
from hypothesis import event, given
from hypothesis import strategies as st

from isowsgi.inside.ending import Ending
from isowsgi.inside.wsgi import Connection, Fate, Gateway
from isowsgi.shared.peek import PEEK_MAX_BYTES, Peeker, Refused
from isowsgi.shared.routing import Route, Router
from tests.conftest import Server, examples, running_server
from tests.differential import Wire, configs
from tests.raw import Client


def wsgi(text: str) -> str:
    """Return text as a WSGI environ has it."""
    return text.encode().decode("latin-1")


# Few values, so that tables and requests meet. Patterns hold no ".", ".." and "//"; paths do.
SEGMENTS = ["a", "b", "ab", "A", wsgi("é"), "a;b", "%"]
ODD_SEGMENTS = ["", "", ".", "..", "...", "*", "%2F", "%2e", "a\\b", "a b", "a:b@c", "\x00", "\r\n", "_"]
HOSTS = ["a.example", "b.example", "[::1]", "*.example"]
HOST_FIELDS = [
    *("a.example", "A.Example:80", "a.example.", "b.example.:8080", "B.EXAMPLE", "[::1]", "[::1]:8000", "other.example", ""),
    *("a.example, b.example", "a.example b.example", "user@a.example", "a.example:b.example", "a.example/a", "a.example.."),
    *(":80", "[::1", ".", "b-1.example", "*.example", "x.a.example", ".example", "a b.example"),
]
MISLEADING_FIELDS = ["X_Host: b.example", "Script-Name: /b", "X-Forwarded-Host: b.example", "PATH_INFO: /b", "X-A: b"]
METHODS = ["GET", "GET", "POST", "HEAD", "OPTIONS", "M-SEARCH"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and what is needed to judge who answered it."""

    data: bytes
    target: str
    script_name: str  # of a SCRIPT_NAME field; "" if there is none


def encoded(path: str, rng: random.Random, rate: float) -> str:
    """Write a path in one of its many ways."""
    return "".join(
        rng.choice(("%{:02X}", "%{:02x}")).format(ord(char)) if not "!" <= char <= "~" or char in "?#" or rng.random() < rate else char
        for char in path
    )


def forms_of(host: str) -> list[str]:
    """Return Host fields for a pattern's host."""
    host = host.replace("*", "b-1")
    return [host, host.upper(), host + ":8000", host.title() + ":", *([] if host.startswith("[") else [host + ".", host + ".:80"])]


@st.composite
def requests(draw: Any, routes: list[Route]) -> Asked:
    route = draw(st.sampled_from(routes))
    prefix = route.prefix
    path = draw(st.sampled_from([prefix, prefix, prefix, prefix[:-1], prefix + "x", "/" + prefix, "/." + prefix, "/a/.." + prefix]))
    rest = draw(st.lists(st.one_of(st.sampled_from(SEGMENTS), st.sampled_from(ODD_SEGMENTS)), max_size=3))
    path += "".join(f"/{segment}" for segment in rest)
    rng = random.Random(draw(st.integers(0, 1 << 16)))
    target = "/" + encoded(path[1:], rng, draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])))
    outer = draw(st.sampled_from([*[""] * 12, "/outer", "/a", "/", "a", "/%61", prefix]))
    if outer.startswith("/") and draw(st.integers(0, 5)):
        target = outer + target
    host = draw(st.sampled_from([*forms_of(route.host) * 2, *HOST_FIELDS]))
    target += draw(st.sampled_from(["", "", "", "?", "?a=/b", "?/../a", "#", "#/a", ";a", "?a#b"]))
    form = draw(st.integers(0, 29))
    if form < 3:
        authority = draw(st.sampled_from([host, host.upper(), host, host.lower(), *HOST_FIELDS[:6]])).replace(" ", "")
        target = draw(st.sampled_from(["http://", "https://", "HTTP://", "x://"])) + authority + target
    elif form == 3:
        target = draw(
            st.sampled_from(["*", "//a.example" + target, "http:" + target, target[1:], "http://a.example", "http://a.example?a"])
        )
    method = "OPTIONS" if target == "*" else draw(st.sampled_from(METHODS))
    fields = [f"{draw(st.sampled_from(['Host', 'host', 'HOST']))}: {host}"]
    fields *= draw(st.sampled_from([1] * 20 + [0, 0, 2]))
    if outer:
        fields += [draw(st.sampled_from(["SCRIPT_NAME", "script_name", "Script_Name"])) + f": {outer}"]
    fields += draw(st.lists(st.sampled_from(MISLEADING_FIELDS), max_size=2))
    draw(st.randoms(use_true_random=False)).shuffle(fields)
    body = draw(st.sampled_from(["", "", "", "GET /b HTTP/1.1\r\n\r\n"])) if method == "POST" else ""
    if method == "POST":
        fields.append(f"Content-Length: {len(body)}")
    version = draw(st.sampled_from(["1.1"] * 19 + ["1.0"]))
    head = "".join(f"{line}\r\n" for line in [f"{method} {target} HTTP/{version}", *fields, ""])
    return Asked((head + body).encode("latin-1"), target, outer)


def judge(routes: list[Route], mount: int, environ: dict[str, Any], asked: Asked) -> None:
    """Fail unless a request was its mount's, by what the app saw."""
    route = routes[mount]
    outer, path_info = environ["SCRIPT_NAME"].removesuffix(route.prefix), environ["PATH_INFO"]
    assert environ["SCRIPT_NAME"] == outer + route.prefix
    assert outer in ("", asked.script_name)
    assert longest_match(routes, environ.get("HTTP_HOST", ""), route.prefix + path_info) == route
    # And that is the path that was asked for, decoded once and not changed otherwise.
    assert environ["RAW_URI"] == asked.target
    raw = path_of(asked.target)
    assert raw.startswith(outer)
    assert unquote_to_bytes(raw[len(outer) :]).decode("latin-1") == route.prefix + path_info


def path_of(target: str) -> str:
    if not target.startswith("/") and "://" in target:
        rest = target.partition("://")[2]
        ends = [at for at in map(rest.find, "/?#") if at >= 0]
        target = rest[min(ends) :] if ends else ""
    return target.partition("#")[0].partition("?")[0]


def longest_match(routes: list[Route], host: str, path: str) -> Route | None:
    """Return the route by the rules of docs/reference/paths.md, in the plainest way."""
    parts = re.fullmatch(r"(\[.*?\]|[^\[:][^:]*?)\.?(:.*)?", host.lower())
    name = parts[1] if parts and not parts[1].startswith("*.") else None  # a client's "*.example" is nobody's host
    wild = "*." + name.partition(".")[2] if name and re.fullmatch(r"[a-z0-9_-]{1,63}\..*", name, re.ASCII) else None
    matching = [
        route for route in routes if route.host in ("", name, wild) and (not route.prefix or (path + "/").startswith(route.prefix + "/"))
    ]
    return max(matching, key=lambda route: (route.host != "", route.host == name, len(route.prefix)), default=None)


# Any table, in one process: what acceptor and instance do with a connection's bytes.


@st.composite
def tables(draw: Any) -> list[Route]:
    prefixes = st.lists(st.sampled_from(SEGMENTS), max_size=2).map(lambda segments: "".join(f"/{segment}" for segment in segments))
    patterns = draw(st.lists(st.tuples(st.sampled_from(["", "", *HOSTS]), prefixes), min_size=1, max_size=6, unique=True))
    if ("", "") not in patterns and draw(st.integers(0, 3)):
        patterns.append(("", ""))
    return [Route(number, host, prefix) for number, (host, prefix) in enumerate(patterns)]


@st.composite
def tables_and_requests(draw: Any) -> tuple[list[Route], list[Asked]]:
    routes = draw(tables())
    return routes, draw(st.lists(requests(routes), min_size=1, max_size=4))


SETTINGS: list[dict[str, Any]] = [
    {},
    {},
    {"forwarded_allow_ips": ""},
    {"forwarder_headers": "*"},
    {"forwarder_headers": ""},
    {"header_map": "dangerous"},
    {"header_map": "dangerous", "forwarded_allow_ips": ""},
    {"header_map": "refuse"},
    {"permit_obsolete_folding": True, "strip_header_spaces": True},
    {"permit_unconventional_http_method": True, "casefold_http_method": True},
]
PEERS: list[Any] = [("127.0.0.1", 50000), ("192.0.2.7", 50000), ""]


def may_say_script_name(settings: dict[str, Any], peer: Any) -> bool:
    """Whether a SCRIPT_NAME field counts: from a proxy that is trusted with it, or from anybody where gunicorn is told to be careless."""
    is_trusted = peer == "" or (peer[0] == "127.0.0.1" and "forwarded_allow_ips" not in settings)
    return (is_trusted and settings.get("forwarder_headers") != "") or settings.get("header_map") == "dangerous"


class _NoLog:
    access_enabled = False

    def debug(self, *arguments: Any) -> None:
        """Nobody reads it."""

    info = warning = exception = access = debug


class Instances:
    """The mounts of a table, each with an app that notes what it is called with, and one connection that goes from one to the other.

    Args:
        grouped: whether all mounts share an instance, and so one connection object.
    """

    def __init__(self, routes: list[Route], settings: dict[str, Any], peer: Any, grouped: bool) -> None:
        _, cfg = configs(settings)
        self._router = Router(routes)
        self._peer = peer
        self._acceptor = Peeker(self._router, cfg)
        self.calls: list[tuple[int, dict[str, Any]]] = []
        self._gateways = [Gateway(mount, self._app_of(mount), cfg, _NoLog(), prefix, {}, lambda: None) for mount, _, prefix in routes]
        self._peekers = [self._acceptor if grouped else Peeker(Router(self._router.rivals(route.mount)), cfg) for route in routes]
        self._grouped = grouped

    def _app_of(self, mount: int) -> Any:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            self.calls.append((mount, environ))
            start_response("200 OK", [("Content-Length", "0")])
            return []

        return app

    def serve(self, data: bytes) -> None:
        """Serve a connection on which these bytes came, as Acceptor and Service do."""
        wire = Wire(data)
        connection = None
        owner = None
        while wire.rest:
            peeked = wire.recv(PEEK_MAX_BYTES, socket.MSG_PEEK)
            try:
                if owner is not None:  # a kept-alive connection: the instance looks first
                    fields = connection.plain.block if connection is not None else b""
                    found = self._peekers[owner].find(peeked, self._peer, first_look=False, fields=fields)
                    if not found[0] or (found[1] != owner and not self._grouped):
                        owner = None
                if owner is None:
                    found = self._acceptor.find(peeked, self._peer)
            except (ParseException, Refused):
                return
            length, mount, line, repeats = found
            if not length or mount is None:
                return
            gateway = self._gateways[mount]
            if connection is None or owner is None:
                connection = Connection(wire, -1, -1, self._peer, ("127.0.0.1", 8000), gateway, {})
                connection.ending = Ending()
            elif connection.gateway is not gateway:
                connection.enter(gateway)
            owner = mount
            left = length
            while left:
                left -= len(wire.recv(left))
            connection.ending.begin(memoryview(bytearray(8 * 64)).cast("q"))
            if gateway.serve(connection, peeked, length, line, repeats, last=False, row=None) is not Fate.KEEP:
                return


@examples(400)
@given(tables_and_requests(), st.sampled_from(SETTINGS), st.sampled_from(PEERS), st.booleans())
def test_what_an_app_sees_of_a_request_leads_to_its_mount(
    given_: tuple[list[Route], list[Asked]], settings: dict[str, Any], peer: Any, grouped: bool
) -> None:
    routes, asked = given_
    instances = Instances(routes, settings, peer, grouped)

    instances.serve(b"".join(request.data for request in asked))

    # Served in order, and a connection that is given up is not gone on with.
    assert len(instances.calls) <= len(asked)
    for request, (mount, environ) in zip(asked, instances.calls, strict=False):
        judge(routes, mount, environ, request)
        if not may_say_script_name(settings, peer):
            assert environ["SCRIPT_NAME"] == routes[mount].prefix
    event(f"{len(instances.calls)} of {len(asked)} requests served")


@examples(200)
@given(tables_and_requests(), st.sampled_from(PEERS), st.sampled_from(["", "/outer", "/a"]))
def test_a_request_is_routed_alike_by_acceptor_and_instance(given_: tuple[list[Route], list[Asked]], peer: Any, script_name: str) -> None:
    """An instance knows a part of the table only. `SCRIPT_NAME` in the server's environment goes before all."""
    routes, asked = given_
    _, cfg = configs({})
    router = Router(routes)
    for request in asked:
        try:
            mount = Peeker(router, cfg, script_name).look(request.data, peer).mount
        except (ParseException, Refused):
            continue
        for route in routes:
            own = Peeker(Router(router.rivals(route.mount)), cfg, script_name).look(request.data, peer, first_look=False)
            assert (own.mount == route.mount) == (mount == route.mount)


# A real server.

# The two of the group are one instance.
MOUNTS = ["/", "/a", "/a/b", "/a/b/ab", "/é", "/%", "a.example/", "a.example/a", "b.example/b", "[::1]/a", "*.example/b"]
ROUTES = [Route(number, mount.partition("/")[0], wsgi(mount[mount.find("/") :].rstrip("/"))) for number, mount in enumerate(MOUNTS)]


@pytest.fixture(scope="module", params=["default", "dangerous"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Mounts of each isolation, and a group, so that connections go from interpreter to interpreter, to a process and back."""
    tables = {"/a/b": "isolation = 'process'", "a.example/": "isolation = 'main'", "/a": "group = 'one'", "a.example/a": "group = 'one'"}
    mounts = "".join(f"'{mount}' = {{ app = 'hello:environ', {tables.get(mount, 'threads = 1')} }}\n" for mount in MOUNTS)
    arguments = ["--header-map", "dangerous"] if request.param == "dangerous" else []
    with running_server(
        tmp_path_factory.mktemp("safety"), f"[defaults]\nthreads = 1\n[mounts]\n{mounts}", *arguments, wait_for=len(MOUNTS) - 1
    ) as server:
        yield server


@examples(150)
@given(asked=st.lists(requests(ROUTES), min_size=1, max_size=6), pipelined=st.booleans())
def test_a_real_server_calls_the_mount_that_the_app_sees(server: Server, asked: list[Asked], pipelined: bool) -> None:
    with Client(server) as client:
        if pipelined:
            client.send_what_fits(b"".join(request.data for request in asked))
        for request in asked:
            if not pipelined:
                client.send_what_fits(request.data)
            method = request.data.partition(b" ")[0].decode()
            answer = client.answer(method)
            event(str(answer.status))
            if answer.status != 200:
                break
            if method != "HEAD":
                environ = json.loads(answer.body)
                judge(ROUTES, MOUNTS.index(environ["isowsgi.mount"]), environ, request)
            if answer.fields["connection"] == "close":
                break
