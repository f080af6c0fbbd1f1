"""`isolation = "auto"` with packages as they come from the index: each app gets an isolation where it answers, and `isowsgi check` knew
which.

The packages are installed once, below .venv/, and stay there.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isowsgi.shared import interpreters
from tests.conftest import DEADLINE_S, ROOT, WHOLE, Server, StartServer
from tests.load import Load

# The newest CPython that all of these have wheels for. They take minutes, so only a whole run has them; ISOWSGI_PACKAGES=1 tries them
# alone, with any Python.
PYTHON = (3, 14)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.environ.get("ISOWSGI_PACKAGES") or (WHOLE and sys.version_info[:2] == PYTHON)),
        reason=f"takes minutes; with ISOWSGI_WHOLE=1 on {PYTHON}, or ISOWSGI_PACKAGES=1",
    ),
]

# What each app uses: its requirement, the code that its import runs, and what each request computes. The answer must be `expected`.
APPS: dict[str, tuple[str, str, str, Any]] = {
    "flask_app": ("flask", "", "", "hello"),
    "django_app": ("django", "", "", "hello"),
    "sqlalchemy_app": (
        "sqlalchemy",
        "import sqlalchemy\nengine = sqlalchemy.create_engine('sqlite://')",
        "engine.connect().execute(sqlalchemy.text('select 6 * 7')).scalar()",
        42,
    ),
    "numpy_app": ("numpy", "import numpy", "int(numpy.arange(10).sum())", 45),
    "pandas_app": ("pandas", "import pandas", "float(pandas.Series([1, 2, 3]).mean())", 2.0),
    "lxml_app": ("lxml", "from lxml import etree", "etree.fromstring('<a><b/></a>')[0].tag", "b"),
    "pydantic_app": (
        "pydantic>=2",
        "import pydantic\nclass Order(pydantic.BaseModel):\n    pieces: int",
        "Order(pieces='3').pieces",
        3,
    ),
    "cryptography_app": (
        "cryptography",
        "from cryptography.fernet import Fernet\nbox = Fernet(Fernet.generate_key())",
        "box.decrypt(box.encrypt(b'a')).decode()",
        "a",
    ),
    # There is no server to ask: this is the extension module's own work.
    "psycopg2_app": ("psycopg2-binary", "import psycopg2.extensions", "psycopg2.extensions.parse_dsn('host=a')['host']", "a"),
    "pillow_app": ("pillow", "from PIL import Image", "Image.new('L', (2, 2), 7).tobytes().hex()", "07070707"),
    "bcrypt_app": ("bcrypt", "import bcrypt", "bcrypt.checkpw(b'a', bcrypt.hashpw(b'a', bcrypt.gensalt(4)))", True),
    "gevent_app": ("gevent", "import gevent", "gevent.spawn(lambda: 5).get()", 5),
    "orjson_app": ("orjson", "import orjson", "orjson.loads(orjson.dumps([1]))", [1]),
    "sentry_app": (
        "sentry-sdk",
        "import sentry_sdk, threading\nsentry_sdk.init('http://key@127.0.0.1:9/1')\nsentry_sdk.capture_message('it starts a thread')",
        "any(thread.daemon and 'sentry' in thread.name for thread in threading.enumerate())",
        True,
    ),
}

PLAIN = """
import json
{setup}
def application(environ, start_response):
    body = json.dumps([{work}, environ["isowsgi.isolation"]]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""

FLASK = """
from flask import Flask, request
application = Flask(__name__)
@application.get("/")
def index():
    return ["hello", request.environ["isowsgi.isolation"]]
"""

DJANGO = """
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import JsonResponse
from django.urls import path
def index(request):
    with connection.cursor() as cursor:
        cursor.execute("select 'hello'")
        return JsonResponse([cursor.fetchone()[0], request.environ["isowsgi.isolation"]], safe=False)
urlpatterns = [path("", index)]
application = get_wsgi_application()
"""


def venv_with(name: str, *requirements: str) -> Path:
    """Return a venv of this Python with some packages, made at its first use; skips where one has no wheel."""
    folder = ROOT / ".venv" / f"{name}-py{sys.version_info[0]}.{sys.version_info[1]}"
    command = [sys.executable, str(ROOT / "tools" / "make_venv.py"), sys.executable, str(folder), "--only-binary", ":all:", *requirements]
    folder.parent.mkdir(exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several tests may want it at once
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        lines = [line.strip() for line in made.stderr.splitlines() if "No matching distribution" in line]
        pytest.skip(lines[0] if lines else f"cannot install {' '.join(requirements)}: {made.stderr[-500:]}")
    return folder


@pytest.fixture(scope="module")
def packages() -> Path:
    return venv_with("auto", *(requirement for requirement, *_ in APPS.values()))


def check(server_folder: Path, cache: Path) -> dict[str, Any]:
    """Run `isowsgi check --json`, which knows nothing of other tests' verdicts."""
    done = subprocess.run(
        [sys.executable, "-m", "isowsgi", "check", "isowsgi.toml", "--json"],
        cwd=server_folder, env={**os.environ, "PYTHONPATH": str(ROOT), "ISOWSGI_CACHE_DIR": str(cache)}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_fourteen_kinds_of_packages_answer_from_one_worker_with_the_isolation_that_check_foretold(
    serve: StartServer, tmp_path: Path, packages: Path
) -> None:
    files = {f"{name}.py": PLAIN.format(setup=setup, work=work) for name, (_, setup, work, _) in APPS.items()}
    files |= {"flask_app.py": FLASK, "django_app.py": DJANGO}
    mounts = "\n".join(f'"/{name}" = "{name}"' for name in APPS)
    config = f'[defaults]\nvenv = "{packages}"\npythonpath = ["."]\nthreads = 2\n[control]\nfolder = "control"\n[mounts]\n{mounts}\n'
    server = serve(config, files=files, env={"ISOWSGI_CACHE_DIR": str(tmp_path / "worker")}, wait_for=0)
    for name in APPS:
        server.wait_for_log(rf"/{name} #\d+: serving")
    server.learn_port()
    workers = server.workers()

    answers = {name: server.get(f"/{name}/") for name in APPS}

    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(APPS, 200)
    found = {name: answer.json() for name, answer in answers.items()}
    assert {name: value for name, (value, _) in found.items()} == {name: expected for name, (*_, expected) in APPS.items()}
    isolations = {f"/{name}": isolation for name, (_, isolation) in found.items()}
    foretold = {mount["pattern"]: mount["isolation"] for mount in check(server.folder, tmp_path / "check")["mounts"]}
    print(isolations)
    assert isolations == foretold
    # A module that works once may crash the process of the next one to load it.
    for name in APPS:
        done = reload(server, f"/{name}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert {name: server.get(f"/{name}/").status_code for name in APPS} == dict.fromkeys(APPS, 200)
    assert server.workers() == workers
    assert len(workers) == 1


NUMPYS = {"older": "2.4.6", "newer": "2.5.5"}
RELOADS = 10

NUMPY = """
import numpy
def application(environ, start_response):
    body = f"{numpy.__version__} {numpy.arange(10).sum()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("isolation", ["auto", "shared-gil"])
def test_two_versions_of_numpy_answer_side_by_side_and_are_reloaded_ten_times_each(
    serve: StartServer, tmp_path: Path, isolation: str
) -> None:
    """Under a shared GIL, which numpy itself refuses to a second copy, a reload must fail and cost nothing."""
    venvs = {name: venv_with(f"numpy-{version}", f"numpy=={version}") for name, version in NUMPYS.items()}
    mounts = "\n".join(
        f'"/{name}" = {{ app = "uses_numpy", pythonpath = ["."], isolation = "{isolation}", venv = "{venv}" }}'
        for name, venv in venvs.items()
    )
    server = serve(
        f'[defaults]\nthreads = 2\n[control]\nfolder = "control"\n[mounts]\n{mounts}\n',
        files={"uses_numpy.py": NUMPY},
        env={"ISOWSGI_CACHE_DIR": str(tmp_path / "cache")},
        wait_for=2,
    )
    with Load(server.connect, [f"/{name}" for name in NUMPYS], clients=4) as load:
        for generation in range(2, RELOADS + 2):
            for name in NUMPYS:
                done = reload(server, f"/{name}")
                if isolation == "auto":
                    assert done.returncode == 0, done.stdout + done.stderr
                    server.wait_for_log(rf"/{name} #{generation}: serving")
                else:
                    assert done.returncode == 1, done.stdout + done.stderr
        for name, version in NUMPYS.items():
            answer = server.get(f"/{name}")
            assert (answer.status_code, answer.text) == (200, f"{version} 45")
    print(f"{load.answered} requests, {load.connections} connections")
    assert load.failures == []
    assert load.answered > 100 * RELOADS


def reload(server: Server, pattern: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isowsgi", "reload", pattern],
        cwd=server.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


LATE = """
import json
def application(environ, start_response):
    if environ["PATH_INFO"] == "/late":
        import {module}
    body = environ["isowsgi.isolation"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.skipif(interpreters.own_gil_error() is not None, reason="needs an own GIL, which these modules refuse")
@pytest.mark.parametrize(("module", "isolation"), [("numpy", "process"), ("orjson", "process"), ("PIL.Image", "shared-gil")])
def test_a_mount_whose_request_imports_what_is_refused_moves_by_itself(
    serve: StartServer, tmp_path: Path, packages: Path, module: str, isolation: str
) -> None:
    server = serve(
        f'[mounts]\n"/" = {{ app = "late", pythonpath = ["."], venv = "{packages}" }}',
        files={"late.py": LATE.format(module=module)},
        env={"ISOWSGI_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert server.get("/").text == "own-gil"

    with Load(server.connect, ["/"], clients=2) as load:
        began = time.monotonic()
        assert server.get("/late").status_code == 500
        package = module.partition(".")[0]
        server.wait_for_log(rf"/ #1: a request imported {package}\S*, which cannot be loaded here: .*; looking for another isolation")
        server.wait_for_log(rf"/: isolation {isolation} \(")
        server.wait_for_log(r"/ #2: serving")
        print(f"{module}: moved within {time.monotonic() - began:.1f} s; {load.answered} other requests meanwhile")

    late = server.get("/late")
    assert (late.status_code, late.text) == (200, isolation)
    assert load.failures == []
