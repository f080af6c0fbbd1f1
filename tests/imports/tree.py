"""The apps that the configuration files name: each says who it is and what it was given."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# Variables that an app tells of; those of the machine are none of a test's business.
ECHO = """\
import json, os, sys

def answer(name, environ, start_response):
    size = int(environ.get("CONTENT_LENGTH") or 0)
    told = lambda given: {key: given[key] for key in sorted(given) if key.startswith(("IMPORT_", "DJANGO_"))}
    body = json.dumps({
        "app": name, "script_name": environ.get("SCRIPT_NAME", ""), "path_info": environ["PATH_INFO"],
        "query": environ.get("QUERY_STRING", ""),
        "method": environ["REQUEST_METHOD"], "body": environ["wsgi.input"].read(size).decode("latin-1") if size else "",
        "env": told(os.environ), "environ": told(environ), "host": environ.get("HTTP_HOST"),
    }).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""

APP = """\
import sys
sys.path.append({srv!r})
from echo import answer

def application(environ, start_response):
    return answer({name!r}, environ, start_response)

def app(environ, start_response):
    return answer({name!r} + ":app", environ, start_response)

def create_app():
    return app
"""

FILES = (
    "shop/shop/__init__.py",
    "shop/shop/wsgi.py",
    "blog/blog.py",
    "blog/wsgi.py",
    "api/api.wsgi",
    "api/api/__init__.py",
    "wiki/wsgi.py",
    "wiki/app.py",
    "scripts/first.wsgi",
    "scripts/second.wsgi",
)

# Files that a server serves itself.
STATIC = ("site.css", "favicon.ico", "robots.txt")


def make(root: Path) -> Path:
    """Make the apps below a folder; return the folder that stands for /srv."""
    srv = root / "srv"
    for name in FILES:
        path = srv / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(APP.format(srv=str(srv), name=name))
    (srv / "echo.py").write_text(ECHO)
    (srv / "run").mkdir()
    (srv / "static").mkdir()
    for name in STATIC:
        (srv / "static" / name).write_text(json.dumps({"file": name}))
    (srv / "shop/deploy.env").write_text("IMPORT_FROM=a file\nIMPORT_LINE=two\n")
    (srv / "shop/secret.txt").write_text("hush\n")
    return srv


def make_venv(srv: Path) -> None:
    """Make the venv of the shop; without pip, which takes seconds."""
    venv = srv / "venvs/shop"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)


def copied(kind: str, srv: Path) -> Path:
    """Copy a kind's configuration files, with their paths moved to where the apps are; return their folder."""
    folder = srv / "conf" / kind
    shutil.copytree(HERE / kind, folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_text(re.sub(r"/srv\b", str(srv), path.read_text()))
    return folder


def rows(kind: str) -> list[list[str]]:
    """Return source, method, host and target of each request to a kind's files, from the list beside them, and what else is said there."""
    return [line.split() for line in (HERE / kind / "requests.txt").read_text().splitlines() if line and line[0] != "#"]


def requests_of(kind: str, source: str) -> list[tuple[str, str, str]]:
    """Return method, host and target of each request for a source."""
    return [(row[1], row[2], row[3]) for row in rows(kind) if row[0] == source]


def expectations(source: str) -> list[tuple[str, str, str, str]]:
    """Return host, target, app with SCRIPT_NAME and PATH_INFO that Unit's documentation leads to, for each request to a source."""
    return [(row[2], row[3], row[4], f"{row[5]} {row[6]}".replace('""', "''")) for row in rows("unit") if row[0] == source]
