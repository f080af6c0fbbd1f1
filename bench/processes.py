"""What an app in a process costs, by how it starts, beside a gunicorn of its own. `python -m bench.processes`

Memory is the proportional set size of all processes of a way, master and fork server included; what one more app takes is the difference
between many apps and a few. Time is from the start until all apps have answered, and until a lazy mount has given its first answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

APPS = {
    "flask": "import flask\napplication = flask.Flask(__name__)\n@application.get('/')\ndef index(): return 'ok'\n",
    "django": (
        "import django\nfrom django.conf import settings\n"
        "settings.configure(ALLOWED_HOSTS=['*'], SECRET_KEY='x', ROOT_URLCONF=__name__,"
        " INSTALLED_APPS=["
        "'django.contrib.admin', 'django.contrib.auth', 'django.contrib.contenttypes', 'django.contrib.sessions',"
        " 'django.contrib.messages'],"
        " TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'APP_DIRS': True}])\n"
        "django.setup()\nfrom django.contrib import admin\nfrom django.core.wsgi import get_wsgi_application\n"
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        "urlpatterns = [path('admin/', admin.site.urls), path('', lambda request: HttpResponse('ok'))]\n"
        "application = get_wsgi_application()\n"
    ),
    "stack": (
        "import flask, pydantic, requests, sqlalchemy.orm\n"
        "class Item(pydantic.BaseModel):\n    name: str\n"
        "class Base(sqlalchemy.orm.DeclarativeBase): pass\n"
        "class Row(Base):\n    __tablename__ = 'r'\n    id: sqlalchemy.orm.Mapped[int] = sqlalchemy.orm.mapped_column(primary_key=True)\n"
        "application = flask.Flask(__name__)\n@application.get('/')\ndef index(): return Item(name='ok').model_dump_json()\n"
    ),
    "hello": "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'ok']\n",
}
PRELOAD = {
    "flask": ["flask"],
    "django": ["django.core.handlers.wsgi", "django.forms", "django.template.backends.django"],
    "stack": ["flask", "pydantic", "requests", "sqlalchemy.orm"],
    "hello": [],
}
# "auto" is measured at a second start, when what the apps have in common is known.
WAYS = ("gunicorn", "own", "forked", "preloaded", "auto")

# How long to wait for anything; and how long after the last answer memory is read, when what the start left to do is done.
_LIMIT_S = 120.0
_REST_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app", choices=APPS, nargs="?", default="flask")
    parser.add_argument("--apps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    few = max(options.apps // 4, 1)
    print("| way | MiB for one more app | MiB in all | s until all have answered | s for a lazy mount's first answer |")
    print("|---|---|---|---|---|")
    for way in options.ways:
        rounds = [_round(way, options.app, options.apps, few) for _ in range(options.rounds)]
        print(f"| {way} |", " | ".join(f"{statistics.median(figures):.2f}" for figures in zip(*rounds, strict=True)), "|", flush=True)


def _round(way: str, app: str, many: int, few: int) -> tuple[float, float, float, float]:
    in_all, started_s = _measure(way, app, many)
    of_few, _ = _measure(way, app, few)
    return (in_all - of_few) / (many - few), in_all, started_s, 0.0 if way == "gunicorn" else _first_answer(way, app)


def _measure(way: str, app: str, count: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as servers:
        folder, begun = Path(name), time.monotonic()
        (folder / "measured.py").write_text(APPS[app])
        if way == "gunicorn":
            started = [servers.enter_context(_gunicorn(folder, ["-k", "gthread", "--threads", "4", "measured"])) for _ in range(count)]
            urls = [f"http://127.0.0.1:{_port(process)}/" for process in started]
        else:
            mounts = "".join(f'"/a{number}" = "measured"\n' for number in range(count))
            if way == "auto":
                _teach(folder, app)
            started = [servers.enter_context(_isowsgi(folder, way, app, mounts))]
            port = _port(started[0])
            urls = [f"http://127.0.0.1:{port}/a{number}/" for number in range(count)]
        for url in urls:
            _answer(url)
        taken_s = time.monotonic() - begun
        time.sleep(_REST_S)
        return sum(_pss_mib(pid) for process in started for pid in _family(process.pid)), taken_s


def _first_answer(way: str, app: str) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "measured.py").write_text(APPS[app])
        mounts = '"/a" = "measured"\n"/b" = { app = "measured", lazy = true }\n'
        if way == "auto":
            _teach(folder, app)
        with _isowsgi(folder, way, app, mounts) as process:
            port = _port(process)
            _answer(f"http://127.0.0.1:{port}/a/")
            begun = time.monotonic()
            _answer(f"http://127.0.0.1:{port}/b/")
            return time.monotonic() - begun


def _teach(folder: Path, app: str) -> None:
    """Have what two apps have in common remembered."""
    (folder / "cache").mkdir(mode=0o700)
    with _isowsgi(folder, "auto", app, '"/a" = "measured"\n"/b" = "measured"\n') as process:
        port = _port(process)
        for name in "ab":
            _answer(f"http://127.0.0.1:{port}/{name}/")
        end = time.monotonic() + _LIMIT_S
        while app != "hello" and not list((folder / "cache").glob("*.preload")) and time.monotonic() < end:
            time.sleep(0.01)


def _isowsgi(folder: Path, way: str, app: str, mounts: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    servers = "false" if way == "own" else "true"
    preload: list[str] | str = PRELOAD[app] if way == "preloaded" else "auto" if way == "auto" else []
    config = f'[worker]\nfork_server = {servers}\n[defaults]\nisolation = "process"\npreload = {json.dumps(preload)}\n[mounts]\n{mounts}'
    (folder / "isowsgi.toml").write_text(config)
    return _gunicorn(folder, ["-k", "isowsgi.Worker", "isowsgi.toml"])


@contextlib.contextmanager
def _gunicorn(folder: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", *arguments]
    environ = {**os.environ, "PYTHONPATH": os.getcwd(), "ISOWSGI_CACHE_DIR": str(folder / "cache")}
    with subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()
            assert process.stderr is not None
            process.stderr.read()


def _port(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(rb"Listening at: http://127.0.0.1:(\d+)", line):
            return int(found[1])
    raise SystemExit("gunicorn did not start")


def _answer(url: str) -> None:
    end = time.monotonic() + _LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:
                answer.read()
            return
        except OSError:  # it does not listen yet, or answers 503
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _pss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)) / 1024


if __name__ == "__main__":
    main()
