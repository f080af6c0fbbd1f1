"""`lazy_imports`: what an app imports is loaded when it is used; and where Python has no such thing, the log says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import OWN_GIL, SHARED_GIL, VERSION, best_isolation
from tests.conftest import DEADLINE_S, Server, StartServer, eventually, running_server

has_lazy_imports = pytest.mark.skipif(VERSION < (3, 15), reason="imports are lazy from Python 3.15 on")

APP = """
import sys
import shop.heavy
import shop.signals
import broken

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/use":
        shop.heavy.VALUE
    elif path == "/broken":
        broken.anything
    elif path == "/late":
        import refusing
        refusing.faulthandler.is_enabled()
    loaded = [name for name in ("shop.heavy", "shop.signals", "broken") if name in sys.modules]
    body = " ".join([environ["isowsgi.isolation"], *loaded]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

FILES = {
    "lazyapp.py": APP,
    "shop/__init__.py": "",
    "shop/heavy.py": "import time\ntime.sleep(0.05)\nVALUE = 1",
    "shop/signals.py": "",
    "broken.py": "raise LookupError('as it was told')",
    "refusing.py": "import faulthandler",
}

CONFIG = """
[defaults]
pythonpath = ["."]
threads = 4
lazy_imports = "all"
eager = ["shop.signals"]

[mounts]
"/" = "lazyapp"
"/child" = { app = "lazyapp", isolation = "process" }
"/once" = { app = "lazyapp", lazy_imports = "normal" }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lazy")
    (folder / "shop").mkdir()
    with running_server(folder, CONFIG, files=FILES, env={"ISOWSGI_CACHE_DIR": str(folder / "cache")}, wait_for=2) as server:
        yield server


@has_lazy_imports
@pytest.mark.parametrize("mount", ["/", "/child/"])
def test_what_an_app_imports_is_loaded_when_it_is_used(server: Server, mount: str) -> None:
    assert server.get(mount).text.split()[1:] == ["shop.signals"]
    assert server.get(f"{mount}use").text.split()[1:] == ["shop.heavy", "shop.signals"]


@has_lazy_imports
def test_an_app_whose_imports_are_not_lazy_is_not_touched_by_its_neighbours(server: Server) -> None:
    server.wait_for_log(r"/once #1: cannot load .*as it was told")


@has_lazy_imports
def test_a_lazy_import_that_fails_names_the_line_that_imports_and_the_line_that_uses(server: Server) -> None:
    """Each time: nothing of it is left behind that would pass for the module."""
    for count in (1, 2):
        assert server.get("/broken").status_code == 500
        server.wait_for_log(r"ImportError: lazy import of 'broken' raised an exception during resolution", count)
    log = server.log()
    lines = APP.splitlines()
    for code in ("import broken", "broken.anything"):
        number = next(number for number, line in enumerate(lines, 1) if line.strip() == code)
        assert f'lazyapp.py", line {number}, in ' in log
    assert server.get("/").status_code == 200


@has_lazy_imports
@pytest.mark.skipif(best_isolation() != OWN_GIL, reason="without an own GIL nothing refuses one")
def test_an_extension_that_refuses_at_its_first_use_moves_the_app(server: Server) -> None:
    assert server.get("/").text.split()[0] == OWN_GIL
    assert server.get("/late").status_code == 500

    eventually(lambda: server.get("/late").text.startswith(SHARED_GIL), "the mount has moved", 4 * DEADLINE_S)


@pytest.mark.skipif(VERSION >= (3, 15), reason="this Python has lazy imports")
def test_an_older_python_serves_and_the_log_says_that_imports_are_not_lazy(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = { app = "hello", lazy_imports = "all" }\n"/b" = "hello"\n')

    assert server.get("/a").status_code == 200
    assert f"[WARNING] /a: lazy_imports has no effect on Python {interpreters.version_text()}: it needs 3.15 or newer" in server.log()
