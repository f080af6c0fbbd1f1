"""An app may patch what it likes of the standard library in its interpreter: what serves it does not notice, and nor do the neighbours."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isowsgi.shared import interpreters
from tests import patch_fuzz
from tests.conftest import Server, eventually, receive_all, running_server

_OK = """
def application(environ, start_response):
    body = environ["wsgi.input"].read() or repr((environ["REMOTE_ADDR"], environ["wsgi.url_scheme"])).encode()
    if environ["PATH_INFO"] == "/raise":
        raise RuntimeError("raised on purpose")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

# Names of files and mounts; what they do before they serve.
_APPS = {
    "wraps_json": "import json\n_dumps = json.dumps\njson.dumps = lambda value, **options: _dumps({'data': value}, **options)\n",
    "hides_logs": """
import logging, logging.config
logging.config.dictConfig({"version": 1, "loggers": {"gunicorn.error": {"handlers": [], "level": "CRITICAL"}}})
logging.disable(logging.CRITICAL)
logging.Logger.callHandlers = logging.Logger.handle = None
""",
    "times_out": "import socket\nsocket.setdefaulttimeout(0.05)\n",
    "removes_epoll": "import select\ndel select.epoll, select.poll  # as eventlet does\n",
    "interrupts": "import _thread\n_thread.interrupt_main()\n",
    "lazy_module": """
import sys, types
class Lazy(types.ModuleType):
    def __getattr__(self, name):
        raise ImportError(f"{self.__name__} is not installed: {name}")
class Placeholder:
    def __getattr__(self, name):
        return self
sys.modules["optional_thing"], sys.modules["mocked"] = Lazy("optional_thing"), Placeholder()
""",
    "filters_access": """
import logging
logging.getLogger("gunicorn.access").addFilter(lambda record: "/health" not in record.getMessage())
logging.getLogger("gunicorn.error").warning("said by %s", "gunicorn's logger")
""",
    "socks_recipe": "import socket, socks\nsocks.set_default_proxy(socks.SOCKS5, '127.0.0.1', 9)\nsocket.socket = socks.socksocket\n",
    "frozen_time": "import freezegun\nfreezegun.freeze_time('2012-01-14 03:21:34').start()\n",
}
_REFUSES_SOCKETS = """
import sys
def refuse(event, args):
    if event == "socket.__new__":
        raise PermissionError("no sockets here")
sys.addaudithook(refuse)
"""
_NEEDS = {"socks_recipe": "socks", "frozen_time": "freezegun"}

_HAS = {name: importlib.util.find_spec(_NEEDS.get(name, "json")) is not None for name in _APPS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    mounts = "".join(f"'/{name}' = '{name}'\n" for name in _APPS if _HAS[name])
    mounts += "".join(f"'/times_out_{home}' = {{ app = 'times_out', isolation = '{home}' }}\n" for home in ("process", "main"))
    mounts += "'/refuses_sockets' = 'refuses_sockets'\n"
    files = {f"{name}.py": text + _OK for name, text in {**_APPS, "refuses_sockets": _REFUSES_SOCKETS}.items()}
    folder = tmp_path_factory.mktemp("patches")
    arguments = ["--forwarded-allow-ips", "10.9.9.9", "--access-logfile", "access.log"]
    count = sum(_HAS.values()) + 3
    with running_server(folder, f"[mounts]\n{mounts}", *arguments, files=files, wait_for=count) as server:
        yield server


@pytest.mark.parametrize("name", _APPS)
def test_an_app_with_patches_is_served_as_any_other(server: Server, name: str) -> None:
    if not _HAS[name]:
        pytest.skip(f"needs {_NEEDS[name]}")
    answer = server.get(f"/{name}/", headers={"X-Forwarded-Proto": "https"})  # from a client that is not trusted
    assert (answer.status_code, answer.text) == (200, "('127.0.0.1', 'http')")
    assert time.time() - time.mktime(time.strptime(answer.headers["Date"], "%a, %d %b %Y %H:%M:%S GMT")) + time.timezone < 60

    assert server.get(f"/{name}/raise").status_code == 500

    server.wait_for_log(rf"/{name} #1: Error handling request GET /{name}/raise\n(?:.*\n)+?  \| RuntimeError: raised on purpose\n")
    eventually(lambda: f"GET /{name}/raise HTTP/1.1" in (server.folder / "access.log").read_text(), "its line in the access log")


@pytest.mark.parametrize("name", ["times_out", "times_out_process", "times_out_main"])
def test_a_default_timeout_of_the_apps_is_not_for_its_clients(server: Server, name: str) -> None:
    """It is for the sake of urllib; body_timeout is 60 s.

    In a process it held for the way by which connections come there, too, and nothing was answered; in the main interpreter for every
    client that connects before it has something to say.
    """
    head, body = f"POST /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n".encode(), b"helloworld"
    with server.connect() as client:
        for part in (head[:9], head[9:] + body[:5]):
            client.settimeout(0.3)  # six times as long
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(30)
            client.sendall(part)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(30)
        client.sendall(body[5:])
        assert receive_all(client).endswith(body)


def test_what_an_app_adds_to_gunicorns_loggers_counts(server: Server) -> None:
    for path in ("/health", "/other"):
        server.get(f"/filters_access{path}")

    eventually(lambda: "/filters_access/other" in (server.folder / "access.log").read_text())
    assert "/filters_access/health" not in (server.folder / "access.log").read_text()
    assert re.search(r"(?m)^\[.*\] \[\d+\] \[WARNING\] said by gunicorn's logger$", server.log())


def test_interrupting_the_main_thread_says_that_it_has_no_effect(server: Server) -> None:
    """It is SIGINT, and gunicorn's worker quits at once by that, with all its mounts."""
    server.wait_for_log(r"/interrupts #1: _thread.interrupt_main has no effect")


def test_nothing_that_serves_is_among_the_apps_modules(tmp_path: Path) -> None:
    app = """
import sys, threading
def application(environ, start_response):
    start_response("200 OK", [])
    names = [name for name in sys.modules if name.partition(".")[0] in ("isowsgi", "gunicorn")]
    return [repr((names, [t.name for t in threading.enumerate() if t.name.startswith("isowsgi")])).encode()]
"""
    with running_server(tmp_path, "[mounts]\n'/' = { app = 'lists_modules', threads = 2 }", files={"lists_modules.py": app}) as server:
        assert server.get("/").text == "([], ['isowsgi-1', 'isowsgi-0'])"


# Everything at once. `make patch-fuzz` does it for each isolation and kind.


def test_no_public_name_of_the_standard_library_is_needed_to_serve(tmp_path: Path) -> None:
    isolations = {"own-gil": "raises", "process": "raises", "shared-gil": "nonsense"}
    if interpreters.best_isolation() != interpreters.OWN_GIL:  # there is none, or it may crash: 3.13.0 does here
        isolations = {"shared-gil": "raises", "process": "nonsense"}
    modules = patch_fuzz.touched_modules()
    mounts = "".join(
        patch_fuzz.mount(f"/{isolation}", isolation, kind, modules, folder=str(tmp_path)) for isolation, kind in isolations.items()
    )
    for isolation in isolations:
        (tmp_path / f"touch-{isolation}").write_text("")

    with running_server(tmp_path, f"[mounts]\n{mounts}", "--access-logfile", "access.log", wait_for=len(isolations)) as server:
        with ThreadPoolExecutor(len(isolations)) as pool:
            found = list(pool.map(lambda isolation: list(patch_fuzz.faults(server, f"/{isolation}")), isolations))
        assert found == [[] for _ in isolations], server.log()
        assert server.stop() == 0
        assert patch_fuzz.mistakes(server.log()) == []


# Exceptions and locks.

# Its exception comes when the thread polls for the next request: by time alone it would come within the request now and then.
_LIMITS_ITSELF = """
import ctypes, sys, threading, time
class TimesUp(Exception): pass
def application(environ, start_response):
    ident = threading.get_ident()
    def raise_it():
        while sys._current_frames()[ident].f_code.co_name != "poll":
            time.sleep(0.002)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(TimesUp))
        print("raised, too late")
    if environ["PATH_INFO"] == "/limited":
        threading.Thread(target=raise_it).start()  # nobody stops it
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

_PRINTS = """
def application(environ, start_response):
    while environ["PATH_INFO"] == "/loop":
        print("x")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture(scope="module")
def unruly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = """
        [mounts]
        "/late" = { app = "limits_itself", threads = 1 }
        "/late-process" = { app = "limits_itself", threads = 1, isolation = "process" }
        "/prints" = { app = "prints", isolation = "shared-gil", request_timeout = 0.3, log = "prints.log" }
    """
    files = {"limits_itself.py": _LIMITS_ITSELF, "prints.py": _PRINTS}
    with running_server(tmp_path_factory.mktemp("unruly"), config, files=files, wait_for=3) as server:
        yield server


@pytest.mark.parametrize("mount", ["/late", "/late-process"])
def test_an_exception_that_comes_when_the_request_has_ended_ends_no_thread(unruly: Server, mount: str) -> None:
    """The thread ended with the baton in its hands: the mount was "serving", and never answered again."""
    said = rf"{mount} #1: a serving thread got an exception after its request had ended.*TimesUp"
    with socket.create_connection((unruly.host, unruly.port), 30) as kept:
        for count in range(1, 4):
            kept.sendall(f"GET {mount}/limited HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert kept.recv(4096).endswith(b"ok")
            unruly.wait_for_log(f"{mount} #1: raised, too late", count)
            assert unruly.get(mount).status_code == 200  # its connection makes the poll return, and there it comes
            unruly.wait_for_log(said, count)
        kept.sendall(f"GET {mount}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert kept.recv(4096).endswith(b"ok")
    assert f"{mount} #2" not in unruly.log()


def test_a_request_that_is_interrupted_while_it_logs_stops_nobody(unruly: Server) -> None:
    """It left the lock of the log's handler taken, and the control thread waited for it ever after."""
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: unruly.get("/prints/loop").status_code, range(6)))

    assert set(answers) <= {503, 504}
    eventually(lambda: unruly.get("/prints").text == "ok", "an answer within the 0.3 s that it may take, which a busy machine may not give")


_POOL = """
import os
from concurrent.futures import InterpreterPoolExecutor
def init(): os.environ["LEFT_BY_A_POOL"] = "1"
def seen(): return os.environ.get("MOUNTS")
def application(environ, start_response):
    with InterpreterPoolExecutor(1, initializer=init) as pool:
        body = str(pool.submit(os.getenv, "MOUNTS").result()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.skipif(interpreters.VERSION < (3, 14), reason="InterpreterPoolExecutor is new in 3.14")
def test_an_interpreter_that_an_app_makes_has_the_apps_environment_and_not_the_process(tmp_path: Path) -> None:
    """What was set there came to the neighbours with their next generation."""
    show = """
import json, os, subprocess
def application(environ, start_response):
    child = subprocess.run(["env"], capture_output=True, text=True).stdout
    start_response("200 OK", [])
    return [json.dumps([os.environ.get("LEFT_BY_A_POOL"), "LEFT_BY_A_POOL" in child]).encode()]
"""
    config = "[mounts]\n'/pool' = { app = 'pool', env = { MOUNTS = 'own' } }\n'/show' = { app = 'show', touch = 'touch' }"
    files = {"pool.py": _POOL, "show.py": show, "touch": ""}
    # As a user starts it: CPython gives such an interpreter the folder in which the process was started, where the app's module is.
    with running_server(tmp_path, config, files=files, wait_for=2, launcher=["env"]) as server:
        assert server.get("/pool").text == "own"
        (tmp_path / "touch").write_text("now")
        server.wait_for_log("/show #2: serving")
        assert json.loads(server.get("/show").text) == [None, False]


def test_an_audit_hook_that_refuses_sockets_has_its_clients_closed(server: Server) -> None:
    """They waited for ever, and their connections counted for ever: nobody was their owner."""
    for _ in range(3):
        with socket.create_connection((server.host, server.port), 30) as sock:
            sock.sendall(b"GET /refuses_sockets HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                assert receive_all(sock) == b""
            except ConnectionResetError:  # the request was not read
                continue
    assert server.get("/wraps_json").status_code == 200
