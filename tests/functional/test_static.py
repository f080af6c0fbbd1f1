"""Static files: answered as nginx answers, from below their folder and nowhere else, whatever the apps do."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command import call
from tests.conftest import DEADLINE_S, Server, eventually, running_server
from tests.raw import Answer, Client

CONFIG = """
[control]
folder = "control"
[mounts]
"/docs" = { static = "site", index = "index.html" }
"/spa" = { static = "site", fallback = "/index.html", expires = 3600 }
"/robots.txt" = { static = "site/a.css" }
"/linked" = { static = "site", follow_symlinks = true }
"/secure" = { static = "site", https_only = true }
"/shop" = { app = "hello:environ", threads = 1, static = { "/static" = "site", "/static/media" = { path = "media" } } }
"/stuck" = { app = "sleeps:application", threads = 1, static = { "/files" = "site" } }
"""

# As nginx has them; its modification time is a minute ago, so that no file is too young for anything.
A_DATE, BEFORE, AFTER = (f"{day} Nov 2020 20:00:00 GMT" for day in ("Thu, 26", "Wed, 25", "Fri, 27"))
A_TIME = 1606420800
DIGITS = b"0123456789" * 10


def make_site(folder: Path) -> None:
    site = folder / "site"
    (site / "sub/inner").mkdir(parents=True)
    (site / ".git").mkdir()
    (site / ".well-known").mkdir()
    (site / "noindex").mkdir()
    (folder / "media").mkdir()
    for name, content in {
        "index.html": b"<h1>home</h1>",
        "sub/index.html": b"<h1>sub</h1>",
        "sub/inner/deep.js": b"let x = 1;",
        "digits.txt": DIGITS,
        "empty.txt": b"",
        "one.bin": b"1",
        "a.css": b"body { color: red }" * 100,
        "a.css.gz": b"gzipped",
        "caf\xc3\xa9.txt".encode("latin-1").decode(): b"coffee",
        "a b.txt": b"space",
        "back\\slash.txt": b"backslash",
        "percent%41.txt": b"percent",
        "big.bin": bytes(range(256)) * 1024,
        "app.0123456789ab.js": b"hashed",
        ".git/config": b"secret",
        ".env": b"secret",
        ".well-known/security.txt": b"contact",
        "noindex/x.svg": b"<svg/>",
    }.items():
        (site / name).write_bytes(content)
        os.utime(site / name, (A_TIME, A_TIME))
    (folder / "secret.txt").write_text("secret")
    (site / "out.txt").symlink_to(folder / "secret.txt")
    (site / "outside").symlink_to(folder)
    (site / "latest").symlink_to("sub")
    (site / "to-git").symlink_to(".git")
    (site / "loop").symlink_to("loop")
    os.mkfifo(site / "fifo")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("static")
    make_site(folder)
    with running_server(folder, CONFIG, wait_for=3, env={"GATE": str(folder / "gate")}) as server:
        yield server


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {}
http {
    include /etc/nginx/mime.types;
    client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
    access_log off; absolute_redirect off;
    server {
        listen unix:nginx.sock;
        location /docs/ { alias SITE/; gzip_static on; }
        location /spa/ { alias SITE/; try_files $uri $uri/ /docs/index.html; }
    }
}
"""


class Nginx:
    """nginx with the same folder."""

    def __init__(self, folder: Path, site: Path) -> None:
        self._path = str(folder / "nginx.sock")
        (folder / "nginx.conf").write_text(NGINX.replace("unix:nginx.sock", f"unix:{self._path}").replace("SITE", str(site)))
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            pytest.skip("needs nginx")
        assert isinstance(program, str)
        command = [program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        eventually(lambda: os.path.exists(self._path), "nginx listens")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        sock.connect(self._path)
        return sock

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture(scope="module")
def nginx(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path_factory.mktemp("nginx"), server.folder / "site")
    yield nginx
    nginx.stop()


class Case(NamedTuple):
    path: str
    fields: str = ""
    method: str = "GET"


def ask(server: Server | Nginx, case: Case) -> Answer:
    with Client(server) as client:  # type: ignore[arg-type] # it has what is needed
        fields = "".join(f"{field}\r\n" for field in case.fields.split("; ") if field)
        client.send(f"{case.method} {case.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n")
        return client.answer(case.method)


JAVASCRIPT = ["/docs/sub/inner/deep.js", "/docs/latest/inner/deep.js", "/docs/app.0123456789ab.js"]
MULTIPART = object()  # with a boundary that is made up

RANGES = [
    "0-0", "0-9", "10-", "-10", "-0", "-1000", "99-", "99-99", "100-", "5-2", "0-1000", "90-1000", "", "-", "a-b", "1-2-3", " 1 - 2 ",
    "0x1-2",
    "9" * 19 + "-", "9" * 30 + "-", "-" + "9" * 30, "0-" + "9" * 30, "--5", "+1-2", "0-0,500-", "500-,600-", "0-0,5-6", ",", "1",
]  # fmt: skip
CASES = [
    *(Case("/docs/digits.txt", f"Range: bytes={value}") for value in RANGES),
    *(Case("/docs/digits.txt", f"Range: {value}") for value in ("BYTES=0-1", "items=0-1", "bytes 0-1", "bytes")),
    *(Case("/docs/empty.txt", f"Range: bytes={value}") for value in ("0-", "-1", "0-0", "1-")),
    Case("/docs/one.bin", "Range: bytes=0-0"),
    Case("/docs/big.bin", "Range: bytes=1000-200000"),
    Case("/docs/digits.txt", "Range: bytes=0-9", "HEAD"),
    *(Case("/docs/digits.txt", f"Range: bytes=0-1; If-Range: {value}") for value in ("ETAG", '"other"', A_DATE, AFTER, "x")),
    *(Case("/docs/digits.txt", f"If-None-Match: {value}", method)
      for value in ("ETAG", "W/ETAG", '"a", ETAG', "*", '"a"') for method in ("GET", "HEAD")),
    *(Case("/docs/digits.txt", f"If-Modified-Since: {value}") for value in (A_DATE, BEFORE, "garbage", "")),
    *(Case("/docs/digits.txt", f"If-Match: {value}") for value in ("ETAG", '"a"', "*", '"a", ETAG')),
    *(Case("/docs/digits.txt", f"If-Unmodified-Since: {value}") for value in (A_DATE, BEFORE, AFTER)),
    Case("/docs/digits.txt", f'If-None-Match: "a"; If-Modified-Since: {A_DATE}'),
    *(Case("/docs/a.css", f"Accept-Encoding: {value}")
      for value in ("gzip", "br", "gzip;q=0", "gzip;q=0.5, br", "x-gzip", "GZIP", "identity", "*")),
    Case("/docs/a.css", "Accept-Encoding: gzip; Range: bytes=0-2"),
    Case("/docs/a.css.gz"),
    *(Case("/docs/digits.txt", method=method) for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")),
    Case("/docs/none.txt", method="POST"), Case("/docs/none.txt", method="HEAD"),
    *(Case(f"/docs/{path}") for path in (
        "", "?x=1", "sub", "sub?a=b", "sub/", "sub/inner", "sub/inner/", "sub/inner/deep.js", "noindex", "noindex/", "none", "none/",
        "digits.txt/",
        "digits.txt/x", "a%20b.txt", "caf%C3%A9.txt", "caf%E9.txt", "back%5Cslash.txt", "percent%2541.txt", "percent%41.txt",
        "%64igits.txt",
        "sub%2Findex.html", "sub//index.html", "/digits.txt", "x" * 255, "x" * 300, "fifo", "latest/", "latest/inner/deep.js", "loop",
        "a%00b", "%00",
        "app.0123456789ab.js",
    )),
    *(Case(f"/spa/{path}") for path in ("", "none", "none/x", "digits.txt", "sub/")),
]  # fmt: skip

# Where nginx answers otherwise, and how: the docs list the same ("Serve static files").
DIFFERENT: dict[Case, dict[str, object]] = {
    Case("/docs/a.css", "Accept-Encoding: gzip; Range: bytes=0-2"): {
        "status": 200,
        "body": b"gzipped",
        "content-length": "7",
        "content-range": None,
    },
    Case("/docs/digits.txt", "Range: bytes=0-0,5-6"): {
        "status": 206,
        "body": MULTIPART,
        "content-length": MULTIPART,
        "content-type": "multipart/byteranges",
    },
    Case("/docs/a.css.gz"): {"content-type": "text/plain"},  # its default type
    **{Case(path): {"content-type": "application/javascript"} for path in JAVASCRIPT},
    Case("/docs/none.txt", method="POST"): {"status": 404},
    **{Case(path): {"status": 403} for path in ("/docs/sub/inner/", "/docs/noindex/")},
}


def test_requests_are_answered_as_nginx_answers_them(server: Server, nginx: Nginx) -> None:
    servers: tuple[Server | Nginx, ...] = (nginx, server)
    etags = [ask(each, Case("/docs/digits.txt")).fields["etag"] for each in servers]
    differing = {}
    for case in CASES:
        theirs, ours = (
            facts(ask(each, case._replace(fields=case.fields.replace("ETAG", etag)))) for each, etag in zip(servers, etags, strict=True)
        )
        if theirs != ours:
            differing[case] = {name: theirs[name] for name in theirs if theirs[name] != ours[name]}

    assert differing.keys() == DIFFERENT.keys()
    for case, expected in DIFFERENT.items():
        assert {name: value if expected.get(name) is not MULTIPART else MULTIPART for name, value in differing[case].items()} == expected


def facts(answer: Answer) -> dict[str, object]:
    """Return what must be the same."""
    body = answer.body if answer.status in (200, 206) else b""
    found: dict[str, object] = {name: answer.fields.get(name) for name in ("content-range", "location", "content-encoding")}
    for name in ("content-length", "content-type"):
        found[name] = answer.fields.get(name, "").partition(";")[0] if answer.status in (200, 206) else None
    return {"status": answer.status, "body": body, **found}


SECRETS = ["secret.txt", ".env", ".git/config", "isowsgi.toml"]
TRAVERSALS = [
    "../{}", "/../{}", "./../{}", "sub/../../{}", "sub/inner/../../../{}", "..//{}", ".../{}", "%2e%2e/{}", "%2e%2e%2f{}", "..%2f{}",
    "%2E%2E%2F{}",
    ".%2e/{}", "%2e./{}", "%252e%252e/{}", "..%252f{}", "..%5c{}", "..\\{}", "%5c..%5c{}", "%c0%ae%c0%ae/{}", "%c0%ae%c0%ae%c0%af{}",
    "%e0%80%ae%e0%80%ae/{}",
    "..%c0%af{}", "..%00/{}", "../{}%00.txt", "%00../{}", "....//{}", "..;/{}", "..;x=1/{}", "sub/..%2f..%2f{}", "outside/{}",
    "outside%2f{}",
    "/{}", "//{}", "///{}", "%2f{}", "{}", "./{}", "sub/../{}", "%2e/{}", "{}/", "{}/.", "?../{}", "to-git/../{}", "latest/../../{}",
    "noindex/../{}",
]  # fmt: skip


def test_no_spelling_of_a_path_leads_out_of_the_folder_or_to_a_hidden_file(server: Server) -> None:
    got = {}
    for spelling in TRAVERSALS:
        for secret in SECRETS:
            for mount in ("/docs", "/shop/static"):
                path = f"{mount}/{spelling.format(secret)}"
                answer = ask(server, Case(path))
                if b"secret" in answer.body or b"[mounts]" in answer.body or answer.status not in (301, 400, 403, 404):
                    got[path] = answer

    assert {path: answer for path, answer in got.items() if "?" not in path} == {}
    assert {answer.body for answer in got.values()} <= {b"<h1>home</h1>"}, "the query is no part of the path"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/docs/out.txt", 403), ("/linked/out.txt", 200), ("/docs/outside/secret.txt", 403), ("/linked/outside/secret.txt", 200),
        ("/docs/latest/index.html", 200), ("/docs/to-git/config", 403), ("/linked/.env", 404), ("/docs/.well-known/security.txt", 200),
        ("/docs/sub/.well-known/x", 404), ("/docs/loop", 403), ("/docs/fifo", 404), ("/docs", 301), ("/robots.txt", 200),
        ("/robots.txt/", 404),
        ("/robots.txt/x", 404), ("/robots.txt2", 404), ("/shop/static/a.css", 200), ("/shop/static/media/a.css", 404),
        ("/secure/a.css", 301),
        ("//evil.example/docs", 404), ("/docs//evil.example/..", 404),
    ],
)  # fmt: skip
def test_links_hidden_files_and_whole_mounts(server: Server, path: str, status: int) -> None:
    assert ask(server, Case(path)).status == status


def test_a_folder_without_a_slash_is_not_another_host(server: Server) -> None:
    assert ask(server, Case("/docs//sub")).fields["location"] == "/docs//sub/"
    assert ask(server, Case("/docs?a=%0d%0a&b=<")).fields["location"] == "/docs/?a=%0d%0a&b=%3C"


def test_what_is_there_after_the_start_is_served_and_what_is_gone_is_not(server: Server) -> None:
    with Client(server) as client:
        path = server.folder / "media/upload.png"
        before = client.ask("/shop/static/media/upload.png")
        path.write_bytes(b"first")
        first = client.ask("/shop/static/media/upload.png")
        path.write_bytes(b"other")
        other = client.ask("/shop/static/media/upload.png", fields=f"If-None-Match: {first.fields['etag']}\r\n")
        path.unlink()
        after = client.ask("/shop/static/media/upload.png")

    assert (before.status, first.body, other.body, after.status) == (404, b"first", b"other", 404)
    assert (first.fields["content-type"], "cache-control" in first.fields) == ("image/png", False)


def test_names_that_change_with_what_is_in_them_may_be_kept_for_ever(server: Server) -> None:
    hashed, plain = (ask(server, Case(path)).fields.get("cache-control") for path in ("/docs/app.0123456789ab.js", "/spa/a.css"))

    assert (hashed, plain) == ("max-age=315360000, public, immutable", "max-age=3600, public")


def test_files_are_served_while_the_app_of_their_mount_is_stuck(server: Server) -> None:
    with server.ask("/stuck"):
        server.wait_for_log("asleep")
        assert ask(server, Case("/stuck/files/a.css")).status == 200
        (server.folder / "gate").touch()


def test_a_connection_goes_from_the_app_to_its_files_and_back(server: Server) -> None:
    with Client(server) as client:
        answers = [client.ask(path) for path in ("/shop/cart", "/shop/static/a.css", "/shop/static/big.bin", "/shop/static", "/shop/")]

    assert [answer.status for answer in answers] == [200, 200, 200, 301, 200]
    assert answers[2].body == bytes(range(256)) * 1024


def test_other_files_are_taken_up_while_the_apps_go_on(server: Server) -> None:
    config = server.folder / "isowsgi.toml"
    text = config.read_text().replace('"/static/media" = { path = "media" }', '"/static/media" = "media", "/more" = "site/sub"')
    config.write_text(text)

    done = call(server.folder, "apply")

    assert done.returncode == 0, done.stdout + done.stderr
    assert (ask(server, Case("/shop/more/")).body, ask(server, Case("/shop/static/a.css")).status) == (b"<h1>sub</h1>", 200)
    assert not re.search(r"/shop #2|/stuck #2", server.log())


LARGE = bytes(range(256)) * 4096 * 10
ENDED = r"static files #\d+: ended"


def slow_clients(server: Server, count: int) -> list[Client]:
    """Return clients that have asked for a large file, and have taken nothing of it but the head."""
    clients = []
    for _ in range(count):
        client = Client(server)
        clients.append(client)
        client.send("GET /docs/large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
    for client in clients:
        assert client.head().fields["content-length"] == str(len(LARGE))
    return clients


def open_large_files(server: Server) -> int:
    """Return how often the worker has the large file open: once for each client that takes it."""
    [worker] = server.workers()
    large = str(server.folder / "site/large.bin")
    return sum(os.path.realpath(fd) == large for fd in Path(f"/proc/{worker}/fd").iterdir())


def test_a_hundred_slow_clients_of_a_large_file_cost_no_thread(server: Server) -> None:
    (server.folder / "site/large.bin").write_bytes(LARGE)
    clients = slow_clients(server, 100)
    eventually(lambda: open_large_files(server) == 100, "all of them take it at once")

    assert ask(server, Case("/docs/a.css")).status == 200

    assert clients[0].read(len(LARGE)) == LARGE
    assert clients[0].ask("/docs/digits.txt").body == DIGITS, "the connection is kept"
    for client in clients:
        client.close()
    eventually(lambda: open_large_files(server) == 0, "nothing is left of those that went")


def test_a_file_on_its_way_survives_the_end_of_its_instance(server: Server) -> None:
    (server.folder / "site/large.bin").write_bytes(LARGE)
    [client] = slow_clients(server, 1)
    ended = len(re.findall(ENDED, server.log()))
    with client:
        done = call(server.folder, "reload", "/docs")
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall(ENDED, server.log())) == ended
        assert client.read(len(LARGE)) == LARGE
        assert client.ask("/docs/digits.txt").body == DIGITS
    server.wait_for_log(ENDED, ended + 1)
