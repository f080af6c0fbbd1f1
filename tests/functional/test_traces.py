"""OpenTelemetry and Sentry as docs/howto/traces.md sets them up: what an app sends arrives at a collector, with its mount.

The packages are installed once, below .venv/, and stay there.
"""

from __future__ import annotations

import gzip
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command import call
from tests.conftest import ROOT, StartServer, eventually
from tests.functional.test_auto import pytestmark as pytestmark
from tests.functional.test_auto import venv_with

PAGE = (ROOT / "docs/howto/traces.md").read_text()


def block(language: str, heading: str) -> str:
    """Return the block of the page in a language that comes first below a heading."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.partition(f"\n## {heading}\n")[2], re.MULTILINE | re.DOTALL)[:1]
    return str(found)


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Have a server take whatever is sent to it; yield its address and what came, by path."""
    came: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came[self.path] = came.get(self.path, b"") + (gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def packages() -> Path:
    return venv_with(
        "traces", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation-wsgi", "sentry-sdk"
    )


def test_a_span_has_its_mount_and_the_clients_trace_and_is_sent_before_the_app_ends(serve: StartServer, packages: Path) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (address, came):
        config = block("toml", "OpenTelemetry").replace("127.0.0.1:4318", address).replace("/srv/shop/.venv", str(packages))
        server = serve(config.replace("/srv/shop", "."), files={"shop.py": block("python", "OpenTelemetry")})
        answer = server.get("/shop/page", headers={"traceparent": f"00-{trace}-{parent}-01"})
        # A batch is sent after 5 s, or when the generation ends.
        reloaded = call(server.folder, "reload", "/shop")
        assert reloaded.returncode == 0, reloaded.stderr
        spans = eventually(lambda: came.get("/v1/traces"), "the span")

    assert answer.status_code == 200
    assert bytes.fromhex(trace) in spans
    assert bytes.fromhex(parent) in spans
    for text in (b"service.name", b"shop", b"isowsgi.mount", b"/shop"):
        assert text in spans


def test_an_exception_reaches_sentry_with_its_mount_and_its_line(serve: StartServer, packages: Path) -> None:
    with collector() as (address, came):
        config = block("toml", "Sentry").replace("key@sentry.example.com", f"key@{address}").replace("https:", "http:")
        config = config.replace("/srv/shop/.venv", str(packages)).replace("/srv/shop", ".")
        server = serve(config, files={"shop.py": block("python", "Sentry")})
        assert server.get("/shop/page").status_code == 500
        events = eventually(lambda: came.get("/api/1/envelope/"), "the event")

    assert re.search(rb'"mount": ?"/shop"', events)
    assert b"ZeroDivisionError" in events
    assert b"1 / 0" in events
