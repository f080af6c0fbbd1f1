"""Write docs/reference/packages.md: which isolation `isowsgi check` gives to packages, from tools/packages.json.

    packages_page.py                        write the page from the data
    packages_page.py --check                only tell whether it is stale
    packages_page.py --measure PYTHON...    install the packages for each Python, check them, and write data and page
    packages_page.py --only NAME... --measure PYTHON...     the same for some of them; what is known of the others stays

Measuring takes a few minutes for each Python and downloads some 200 MB of wheels. Nothing is compiled: a package without a wheel for a
Python is left out of its column.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Any

import pages
from make_venv import Failed, Progress, Venv, make
from pages import ROOT

PAGE = ROOT / "docs" / "reference" / "packages.md"
DATA = ROOT / "tools" / "packages.json"
WORK = ROOT / ".bench" / "packages"

# Name of the package, and what its app does at import: enough to load all that a site would, and to use it once.
PACKAGES = {
    "Flask": "import flask; flask.Flask('x').test_client().get('/')",
    "Django": (
        "import django, django.conf\n"
        "db = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
        "django.conf.settings.configure(DATABASES=db); django.setup()\n"
        "from django.db import connection; connection.cursor().execute('select 1')"
    ),
    "requests": "import requests",
    "redis": "import redis",
    "PyMySQL": "import pymysql",
    "pg8000": "import pg8000",
    "psycopg": "import psycopg",
    "psycopg2-binary": "import psycopg2",
    "SQLAlchemy": "import sqlalchemy; sqlalchemy.create_engine('sqlite://').connect().execute(sqlalchemy.text('select 1'))",
    "sentry-sdk": "import sentry_sdk; sentry_sdk.init('http://key@127.0.0.1:9/1')",
    "opentelemetry-api": "import opentelemetry.trace",
    "jsonschema": "import jsonschema; jsonschema.validate(1, {'type': 'integer'})",
    "pydantic": "import pydantic; pydantic.create_model('M', x=(int, 1))(x=2)",
    "msgspec": "import msgspec",
    "orjson": "import orjson; orjson.loads(b'[1]')",
    "ujson": "import ujson; ujson.loads('[1]')",
    "simplejson": "import simplejson; simplejson.loads('[1]')",
    "msgpack": "import msgpack; msgpack.packb(1)",
    "protobuf": "import google.protobuf.descriptor_pb2",
    "grpcio": "import grpc",
    "PyYAML": "import yaml; yaml.safe_load('a: 1')",
    "lxml": "import lxml.etree; lxml.etree.fromstring('<a/>')",
    "zope.interface": "import zope.interface",
    "wrapt": "import wrapt",
    "greenlet": "import greenlet; greenlet.greenlet(lambda: 1).switch()",
    "gevent": "import gevent; gevent.sleep(0)",
    "uvloop": "import uvloop",
    "httptools": "import httptools",
    "tornado": "import tornado.web, tornado.util",
    "aiohttp": "import aiohttp",
    "numpy": "import numpy; numpy.ones(3).sum()",
    "pandas": "import pandas; pandas.DataFrame({'a': [1]}).sum()",
    "Pillow": "import PIL.Image; PIL.Image.new('RGB', (2, 2)).resize((1, 1))",
    "regex": "import regex; regex.match('a', 'a')",
    "charset-normalizer": "import charset_normalizer; charset_normalizer.from_bytes(b'a').best()",
    "cffi": "import cffi; cffi.FFI().new('int *')",
    "cryptography": "from cryptography.fernet import Fernet; Fernet(Fernet.generate_key()).encrypt(b'a')",
    "bcrypt": "import bcrypt; bcrypt.hashpw(b'a', bcrypt.gensalt(4))",
    "brotli": "import brotli; brotli.compress(b'a')",
    "zstandard": "import zstandard; zstandard.compress(b'a')",
    "psutil": "import psutil; psutil.Process().memory_info()",
    "setproctitle": "import setproctitle",
}
WSGI = "\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"

HEAD = """\
<!-- Written by tools/packages_page.py from tools/packages.json; do not edit here. -->

# Packages and the isolation they get

What `isolation = "auto"` comes to for an app that uses one of these packages, as `isowsgi check` found out by loading it and using it a
little: it is no proof of more. Each is the newest version that had a wheel. Yours may differ:
[ask for your own app](../howto/isolation.md).

- **own GIL**: an interpreter with its own GIL. On 3.12 and 3.11 there is none that is sound, so the best is a shared one.
- **shared GIL**: an interpreter that shares the GIL with gunicorn. It loads there twice, so it can be replaced.
- **process**: its own process, as some part of it loads once per process, loads in the main interpreter only, or
  crashes an interpreter's successor.
- **without its C part**: the C part is refused there, or in the copy that would replace it, and the package falls back on slower Python.

"""

FOOT = """
## Measured again

```console
$ python3 tools/packages_page.py --measure python3.12 python3.14
```
"""

_ISOLATIONS = {"own-gil": "own GIL", "shared-gil": "shared GIL", "process": "process", None: "none"}


def measure(python: str, names: Collection[str] = PACKAGES) -> tuple[str, dict[str, Any]]:
    """Install packages for one Python and check them; returns its version and what was found."""
    version = _output([python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"])
    short = version.rpartition(".")[0]
    progress = Progress(sys.stdout)
    host = Venv(folder=WORK / f"host-{short}", arguments=("-e", str(ROOT)), contents="isowsgi")
    make(python, [host], progress)
    folder = WORK / f"apps-{short}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    installed: dict[str, str] = {}
    lines = ["[mounts]"]
    for number, name in enumerate(names):
        print(f"{short}: {name}", flush=True)
        # Alone, for many packages look for others that they use if they are there; and one may have no wheel.
        venv = folder / f"venv{number}"
        subprocess.run([python, "-m", "venv", "--without-pip", str(venv)], check=True)
        interpreter = str(venv / "bin" / "python")
        install = [interpreter, str(WORK / ".pip" / "pip"), "install", "--quiet", "--only-binary", ":all:", name]
        if subprocess.run(install, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            installed[name] = _output([interpreter, "-c", f"import importlib.metadata as m; print(m.version({name!r}))"])
            (folder / f"uses_{number}.py").write_text(PACKAGES[name] + WSGI)
            lines.append(f'"/{name}" = {{ app = "uses_{number}", venv = "venv{number}" }}')
    (folder / "isowsgi.toml").write_text("\n".join(lines) + "\n")
    command = [str(host.python), "-m", "isowsgi", "check", "--json", "--timeout", "30"]
    env = {**os.environ, "ISOWSGI_CACHE_DIR": str(WORK / "cache")}
    report = json.loads(subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, check=False).stdout)
    found = {
        mount["pattern"].removeprefix("/"): {
            "version": installed[mount["pattern"].removeprefix("/")],
            "isolation": mount["isolation"],
            "reason": re.sub(r" \(/[^)]*\)", "", mount["reason"]),  # a path of this machine
            "fallbacks": mount["fallbacks"],
        }
        for mount in report["mounts"]
    }
    shutil.rmtree(folder)
    return version, {"date": time.strftime("%Y-%m-%d"), "packages": found}


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def page(data: dict[str, Any]) -> str:
    """Return the page: a row for each package, a column for each Python."""
    versions = sorted(data, key=lambda version: tuple(map(int, version.split("."))))
    parts = [HEAD, f"| package | {' | '.join(f'CPython {version}' for version in versions)} | what decides |\n"]
    parts.append("|---|" + "---|" * (len(versions) + 1) + "\n")
    for name in PACKAGES:
        cells = [data[version]["packages"].get(name) for version in versions]
        known = [cell for cell in cells if cell is not None]
        newest = known[-1]["version"] if known else ""
        reason = next((cell["reason"] for cell in reversed(known) if cell["isolation"] != "own-gil"), "")
        if not reason:
            fallbacks: list[str] = next((cell["fallbacks"] for cell in reversed(known) if cell["fallbacks"]), [])
            reason = f"{', '.join(fallbacks[:2])}{', ...' if len(fallbacks) > 2 else ''} refused" if fallbacks else ""
        if reason == "it loads":
            reason = ""
        shown = " | ".join(_cell(cell, newest) for cell in cells)
        parts.append(f"| {name} {newest} | {shown} | {reason.replace('|', chr(92) + '|')} |\n")
    dates = "; ".join(f"{version}: {data[version]['date']}" for version in versions)
    return "".join([*parts, f"\nMeasured on Linux, x86-64 ({dates}).\n", FOOT])


def _cell(cell: dict[str, Any] | None, newest: str) -> str:
    if cell is None:
        return "no wheel"
    text = _ISOLATIONS[cell["isolation"]] + (", without its C part" if cell["fallbacks"] else "")
    return text if cell["version"] == newest else f"{text} ({cell['version']})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages.add_option(parser)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=PACKAGES, help="measure these packages only")
    parser.add_argument("--measure", nargs="+", metavar="PYTHON", default=[], help="measure with these; other columns stay")
    options = parser.parse_args()
    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for python in options.measure:
        try:
            version, found = measure(python, options.only or PACKAGES)
        except (Failed, subprocess.CalledProcessError, ValueError) as exc:
            print(f"packages_page: {python}: {exc}", file=sys.stderr)
            return 1
        if options.only:
            found["packages"] = {**data.get(version, {}).get("packages", {}), **found["packages"]}
        data = {other: facts for other, facts in data.items() if other.rpartition(".")[0] != version.rpartition(".")[0]}
        data[version] = found
        DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return pages.bring_up_to_date(PAGE, page(data), __file__, options.check)


if __name__ == "__main__":
    sys.exit(main())
