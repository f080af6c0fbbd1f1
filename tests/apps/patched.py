"""Patches the standard library as `PATCHES` says, when it is loaded or when /patch is asked for, and serves with nothing of that.

`PATCHES` is JSON: `modules` to import, `names` ("socket.socket") to replace, or null for all public ones, and `kind`: what stands in the
place of each then, "raises" or "nonsense"; and whether that is done `at_import`.
"""

import importlib
import json
import os
import sys
import time


class Patched(Exception):
    """Raised by whatever is called that was replaced."""


def _raise(self, *args, **options):
    raise Patched(object.__getattribute__(self, "name"))


def _nonsense(self, *args, **options):
    return "nonsense"


_DUNDERS = ("call", "getattr", "eq", "lt", "gt", "or", "and", "add", "contains", "iter", "len", "index", "int", "enter", "instancecheck")


def _make(kind):
    action = _raise if kind == "raises" else _nonsense
    names = _DUNDERS if kind == "raises" else ("call", "getattr")
    return type("Broken", (), {f"__{name}__": action for name in names} | {"__hash__": object.__hash__})


def prepare(modules, names, kind):
    broken = _make(kind)
    loaded = {name: importlib.import_module(name) for name in modules}
    wanted = names
    if wanted is None:
        wanted = [f"{name}.{attribute}" for name, module in loaded.items() for attribute in dir(module) if not attribute.startswith("_")]
    setters = []
    for name in wanted:
        module, _, attribute = name.rpartition(".")
        thing = broken()
        thing.name = name
        setters.append((loaded[module].__dict__, attribute, thing))

    def patch():
        for namespace, attribute, thing in setters:
            namespace[attribute] = thing

    return patch


def _bind(patch):
    sleep, stdout, folder, size = time.sleep, sys.stdout, os.path.dirname(__file__), os.path.getsize(__file__)
    open_file = open

    def application(environ, start_response):
        path = environ["PATH_INFO"]
        body = b"ok"
        if path == "/patch":
            patch()
        elif path == "/echo":
            body = environ["wsgi.input"].read()
        elif path == "/raise":
            raise RuntimeError("raised on purpose")
        elif path == "/print":
            stdout.write("printed on purpose\n")
        elif path == "/slow":
            for _ in range(6000):
                sleep(0.01)
        elif path == "/file":
            start_response("200 OK", [("Content-Length", str(size))])
            return environ["wsgi.file_wrapper"](open_file(folder + "/patched.py", "rb"))
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return application


_settings = json.loads(os.environ["PATCHES"])
_at_import = _settings.pop("at_import")
_patch = prepare(**_settings)
application = _bind(_patch)
if _at_import:
    _patch()
