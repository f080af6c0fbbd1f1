"""Frameworks from the index that raise 1,000 times: three groups with 1,000 in all. Flask and Django are in test_errors."""

from __future__ import annotations

import os
from functools import partial

import pytest

from tests.conftest import WHOLE, Server, StartServer, eventually
from tests.functional.test_auto import venv_with
from tests.functional.test_errors import ask, groups, total
from tests.functional.test_operate import isowsgi

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (os.environ.get("ISOWSGI_PACKAGES") or WHOLE), reason="installs packages; with ISOWSGI_PACKAGES=1"),
]

PYRAMID = """
from pyramid.config import Configurator
from pyramid.response import Response

def key(request):
    raise KeyError("sku")

def zero(request):
    return 1 / 0

def value(request):
    raise ValueError("no stock")

def error(exc, request):
    return Response("sorry", status=500)

def make(has_exception_view):
    with Configurator() as config:
        for view in (key, zero, value):
            config.add_route(view.__name__, "/" + view.__name__)
            config.add_view(view, route_name=view.__name__)
        if has_exception_view:
            config.add_exception_view(error, context=Exception)
        return config.make_wsgi_app()

app = make(False)
with_view = make(True)
"""

FALCON = """
import falcon

class Resource:
    def on_get(self, request, response, name):
        if name == "key":
            raise KeyError("sku")
        if name == "zero":
            1 / 0
        raise ValueError("no stock")

app = falcon.App()
app.add_route("/{name}", Resource())
"""

BOTTLE = """
import bottle
app = bottle.Bottle()

@app.route("/key")
def key():
    raise KeyError("sku")

@app.route("/zero")
def zero():
    return 1 / 0

@app.route("/value")
def value():
    raise ValueError("no stock")
"""

MOUNTS = {"/pyramid": "uses_pyramid", "/view": "uses_pyramid:with_view", "/falcon": "uses_falcon", "/bottle": "uses_bottle"}
TIMES = {"key": 400, "zero": 300, "value": 300}


def has_all(server: Server, mount: str) -> bool:
    return total(server, mount) >= 1000


def test_pyramid_falcon_and_bottle_raise_a_thousand_times_in_three_places(serve: StartServer) -> None:
    venv = venv_with("frameworks", "pyramid", "falcon", "bottle")
    apps = {mount: app if ":" in app else f"{app}:app" for mount, app in MOUNTS.items()}
    # Given, not tried: falcon's wheel has some forty extension modules, and the trials of all isolations took a minute on a busy machine.
    isolations = {mount: "own-gil" if mount == "/bottle" else "process" for mount in MOUNTS}
    mounts = "\n".join(f'"{mount}" = {{ app = "{app}", isolation = "{isolations[mount]}" }}' for mount, app in apps.items())
    files = {"uses_pyramid.py": PYRAMID, "uses_falcon.py": FALCON, "uses_bottle.py": BOTTLE}
    config = f'[defaults]\nvenv = "{venv}"\npythonpath = ["."]\n[control]\nfolder = "control"\n[mounts]\n{mounts}\n'
    server = serve(config, files=files, wait_for=len(MOUNTS))
    for mount in MOUNTS:
        for path, times in TIMES.items():
            ask(server, f"{mount}/{path}", times)

    expected = {("exception", "KeyError"): 400, ("exception", "ZeroDivisionError"): 300, ("exception", "ValueError"): 300}
    for mount in MOUNTS:
        eventually(partial(has_all, server, mount), f"1,000 errors of {mount}")
        found = groups(server, mount)
        assert {key: group["count"] for key, group in found.items()} == expected, mount
        assert all(group["details"].startswith("Traceback") for group in found.values())
    assert "/falcon: 1,000 errors in 3 groups" in isowsgi(server, "errors").stdout
