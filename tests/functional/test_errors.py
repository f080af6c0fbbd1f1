"""What frameworks catch and answer with 500 is known from outside: by type and place, counted exactly, in each kind of isolation."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from isowsgi.shared.interpreters import best_isolation
from tests.conftest import ROOT, Server, eventually, shared_server
from tests.functional.test_operate import isowsgi

FLASK = """
import flask
app = flask.Flask(__name__)

@app.route("/key")
def key():
    raise KeyError("sku")

@app.route("/zero")
def zero():
    return 1 / 0

@app.route("/log")
def log():
    try:
        1 / 0
    except ZeroDivisionError:
        app.logger.exception("no cache")
    return "ok"

@app.route("/sorry")
def sorry():
    return "sorry", 503
"""

DJANGO = """
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
from django.core.wsgi import get_wsgi_application
from django.urls import path

def key(request):
    raise KeyError("sku")

def zero(request):
    return 1 / 0

urlpatterns = [path("key", key), path("zero", zero)]
app = get_wsgi_application()
"""

# As Falcon and Bottle do, and as PEP 3333 has it.
PLAIN = """
import sys, traceback

class Endless(Exception):
    def __str__(self):
        return str(self)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    try:
        if path == "/key":
            raise KeyError("sku")
        if path == "/zero":
            1 / 0
        if path == "/endless":
            raise Endless
        raise type("E" + environ["QUERY_STRING"], (Exception,), {})("\\033[31m")
    except KeyError:
        environ["wsgi.errors"].write("[FALCON] [ERROR] GET /key => " + traceback.format_exc())
    except ZeroDivisionError:
        start_response("500 Oops", [("Content-Length", "0")], sys.exc_info())
        return []
    start_response("500 Oops", [("Content-Length", "0")])
    return []
"""

# Flask's is given: on a busy machine to find out which it supports took a minute.
CONFIG = f"""
    [mounts]
    "/flask" = {{ app = "flask_site:app", isolation = "{best_isolation()}" }}
    "/django" = {{ app = "django_site:app", isolation = "process" }}
    "/plain" = {{ app = "plain_site:app", isolation = "shared-gil" }}
    "/raises" = "operated"
    "/bad" = {{ app = "crashes_on_import", lazy = true }}
    [control]
    folder = "control"
"""

FILES = {"flask_site.py": FLASK, "django_site.py": DJANGO, "plain_site.py": PLAIN}

server = shared_server(CONFIG, files=FILES, wait_for=4)


def ask(server: Server, path: str, count: int = 1, status: int = 500) -> None:
    """Ask for a path, over one connection."""
    client = http.client.HTTPConnection("127.0.0.1", server.port)
    try:
        for _ in range(count):
            client.request("GET", path)
            response = client.getresponse()
            response.read()
            assert response.status == status
    finally:
        client.close()


def groups(server: Server, pattern: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the groups of a mount by kind and type."""
    shown = isowsgi(server, "errors", pattern, "--json")
    [worker] = json.loads(shown.stdout)["workers"]
    return {(group["kind"], group["type"]): group for group in worker["groups"]}


def total(server: Server, pattern: str) -> int:
    return sum(group["count"] for group in groups(server, pattern).values())


def counted(server: Server, pattern: str, kind: str, type_: str, count: int) -> dict[str, Any]:
    """Wait until a group has a count, and return it."""
    return eventually(
        lambda: (group := groups(server, pattern).get((kind, type_))) and group["count"] >= count and group, f"{count} {kind} {type_}"
    )


@pytest.mark.parametrize(("mount", "file"), [("/flask", "flask_site"), ("/django", "django_site"), ("/plain", "plain_site")])
def test_what_a_framework_answers_500_is_counted_by_type_and_place_with_the_last_request_and_traceback(
    server: Server, mount: str, file: str
) -> None:
    ask(server, f"{mount}/key", 40)
    ask(server, f"{mount}/key?last", 1)
    ask(server, f"{mount}/zero", 30)

    key = counted(server, mount, "exception", "KeyError", 41)
    zero = counted(server, mount, "exception", "ZeroDivisionError", 30)
    assert (key["count"], zero["count"]) == (41, 30)
    assert f"/{file}.py:" in key["place"]
    assert (key["request"], key["error"]) == (f"GET {mount}/key?last", "KeyError: 'sku'")
    assert 'raise KeyError("sku")' in key["details"]
    assert key["first"] <= key["at"]


def test_what_is_no_exception_has_kinds_of_its_own(server: Server) -> None:
    ask(server, "/flask/log", 1, 200)
    ask(server, "/flask/sorry", 2, 503)
    ask(server, "/bad/x", 1, 503)

    logged = counted(server, "/flask", "logged", "ZeroDivisionError", 1)
    assert logged["count"] == 1, "the log record and what its handler wrote to wsgi.errors are the same exception"
    assert counted(server, "/flask", "response", "503 SERVICE UNAVAILABLE", 2)["request"] == "GET /flask/sorry"
    assert counted(server, "/bad", "refused", "503 Service Unavailable", 1)["request"] == "GET /bad/x"


@pytest.mark.parametrize("arguments", [[], ["/plain"]])
def test_follow_prints_what_is_new_of_the_rarest_group_too_and_nothing_else(server: Server, arguments: list[str]) -> None:
    before = total(server, "/plain")
    for number in range(7):
        ask(server, f"/plain/other?{number}", 8 - number)
    eventually(lambda: total(server, "/plain") == before + 35, "35 errors more")
    rare = groups(server, "/plain")["exception", "plain_site.E6"]["count"]
    command = [sys.executable, "-m", "isowsgi", "errors", *arguments, "--follow", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=server.folder, env=env, stdout=subprocess.PIPE, text=True) as shown:
        try:
            assert shown.stdout is not None
            assert json.loads(shown.stdout.readline())["workers"]
            ask(server, "/plain/other?6")
            news = json.loads(shown.stdout.readline())
        finally:
            shown.send_signal(signal.SIGINT)

    assert (news["mount"], news["type"], news["more"], news["count"]) == ("/plain", "plain_site.E6", 1, rare + 1)
    assert news["request"] == "GET /plain/other?6"
    assert shown.returncode == 0


def test_no_exception_is_so_odd_that_its_request_is_not_counted(server: Server) -> None:
    ask(server, "/plain/endless")
    for number in range(60):
        ask(server, f"/plain/other?{number}")

    assert counted(server, "/plain", "exception", "other", 1)
    eventually(lambda: total(server, "/plain") >= 61, "61 errors")
    assert len(groups(server, "/plain")) <= 51
    assert "\x1b" not in isowsgi(server, "errors", "/plain").stdout
    assert "internal error" not in server.log()


def test_groups_stay_when_the_app_is_loaded_again(server: Server) -> None:
    ask(server, "/raises/raise")
    counted(server, "/raises", "exception", "LookupError", 1)
    assert isowsgi(server, "reload", "/raises").returncode == 0
    ask(server, "/raises/raise")

    group = counted(server, "/raises", "exception", "LookupError", 2)
    assert (group["count"], group["generation"]) == (2, 2)


def test_without_a_pattern_the_worst_mount_comes_first_and_80_columns_suffice(server: Server) -> None:
    ask(server, "/flask/zero", 250)
    counted(server, "/flask", "exception", "ZeroDivisionError", 250)
    shown = isowsgi(server, "errors")

    assert shown.returncode == 0
    heads = [line for line in shown.stdout.splitlines() if line.startswith("/")]
    counts = [int(line.split(": ")[1].split()[0].replace(",", "")) for line in heads]
    assert counts == sorted(counts, reverse=True)
    assert heads[0].startswith("/flask: ")
    assert "Traceback" not in shown.stdout
