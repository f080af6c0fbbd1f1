"""deploy/container: the image is built, and runs as somebody unknown, without rights, on a root that it cannot write to.

No registry is asked: the image below is made of Debian's packages, and wheels are fetched before the build. Takes a minute or two: `make
image`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import DEADLINE_S, ROOT, eventually
from tests.load import Load
from tests.test_docs import blocks_of

CONTAINER = ROOT / "deploy" / "container"
DEMO = ROOT / "examples" / "demo"
TOOLS = ("mmdebstrap", "buildah", "podman", "runc")
# One that runs without being installed: what make_venv.py leaves.
PIP = ROOT / ".venv" / ".pip" / "pip"

missing = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif("ISOWSGI_IMAGE" not in os.environ, reason="takes minutes; `make image` runs it"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an image"),
    pytest.mark.skipif(not PIP.exists() and importlib.util.find_spec("pip") is None, reason="no pip to fetch wheels with"),
]

# Debian's unstable suite has a CPython on which apps have a GIL of their own.
SUITE, PYTHON = "sid", "3.14"
PACKAGES = ("base-files", "dash", "coreutils", "libc-bin", f"python{PYTHON}", f"python{PYTHON}-venv")
# Unpacked, and no script of the packages run: pip wants one file that these would make, and python3 is what official images call it.
HOOK = (
    'mkdir -p "$1/etc/ssl/certs"; cat "$1"/usr/share/ca-certificates/mozilla/*.crt >"$1/etc/ssl/certs/ca-certificates.crt"; '
    f'ln -s python{PYTHON} "$1/usr/bin/python3"'
)

PAGE = {block.mark: block.text for block in blocks_of(ROOT / "docs" / "howto" / "container.md")}
# What it leaves behind must outlive an app's process too.
CONFIG = PAGE["config"].replace('"/srv/shop/.venv" }', '"/srv/shop/.venv", isolation = "process" }')

# What an app may do in a container: leave processes behind, which end with a code that means something to gunicorn, and try to write.
SHOP = """
    import os, subprocess, sys

    ORPHAN = "import os; pid = os.fork(); print(pid) if pid else os._exit(3)"


    def application(environ, start_response):
        path, body = environ["PATH_INFO"], b"shop"
        if path == "/orphan":
            body = subprocess.run([sys.executable, "-ISc", ORPHAN], check=True, capture_output=True).stdout
        elif path.startswith("/write/"):
            try:
                open(path.removeprefix("/write"), "w").close()
            except OSError as exc:
                body = type(exc).__name__.encode() + b" " + str(exc.errno).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    """


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout).strip()


# The page's commands, with what an engine within a container of its own, without a network, has to be told.
SHIM = """#!/bin/sh
command=$1
shift
case $command in
build)
    exec buildah {storage} bud --isolation chroot --pull-never --signature-policy {folder}/policy.json --volume {wheels}:/wheels:ro \\
        --build-arg BASE=localhost/base --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels "$@" ;;
run)
    exec {podman} {storage} {places} run {here} --volume {wheels}:/wheels:ro --env PIP_NO_INDEX=1 --env PIP_FIND_LINKS=/wheels \\
        --network ${{NETWORK:-none}} "$@" ;;
*)
    exec {podman} {storage} {places} "$command" "$@" ;;
esac
"""
# Its defaults are more than this machine may allow.
HERE = "--ulimit nofile=20000:20000 --ulimit nproc=4096:4096 --no-healthcheck"


class Engine:
    """podman and buildah with all that they keep in one folder."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        # buildah would look for the system's, which says whose images may be used.
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        storage = f"--storage-driver vfs --root {folder}/images --runroot {folder}/run"
        places = f"--tmpdir {folder}/tmp --runtime runc --cgroup-manager cgroupfs"
        (folder / "bin").mkdir()
        shim = folder / "bin" / "podman"
        shim.write_text(SHIM.format(storage=storage, places=places, folder=folder, wheels=wheels, here=HERE, podman=shutil.which("podman")))
        shim.chmod(0o755)
        self._env = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}

    def podman(self, *arguments: str | Path, **env: str) -> str:
        return run("podman", *arguments, env={**self._env, **env})

    def follow(self, mark: str, folder: Path) -> str:
        """Run the commands of the page's block that is marked so."""
        return run("sh", "-ec", PAGE[mark], cwd=folder, env=self._env)

    def close(self) -> None:
        self.podman("rm", "--all", "--force", "--time", "0")


def make_base(folder: Path) -> Path:
    """Return an archive with a Python and a shell, as an official image has them; ISOWSGI_IMAGE_BASE names one to use instead."""
    if "ISOWSGI_IMAGE_BASE" in os.environ:
        return Path(os.environ["ISOWSGI_IMAGE_BASE"])
    indexes = run("apt-get", "indextargets", "--format", "$(SITE)").splitlines()
    mirror = next((site for site in indexes if site.endswith("/debian")), "")
    if not mirror:
        pytest.skip("needs a Debian mirror among apt's sources, or ISOWSGI_IMAGE_BASE")
    # Nothing but what is run. The date of a mirror that is a snapshot does not matter.
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    given = [
        "--variant=extract",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=Acquire::Check-Valid-Until "false"',
        f"--extract-hook={HOOK}",
    ]
    archive = folder / "base.tar"
    run("mmdebstrap", *given, *left_out, SUITE, archive, mirror)
    return archive


def fetch_wheels(folder: Path) -> Path:
    """Return a folder with what isowsgi and the apps need, and what builds isowsgi's own wheel."""
    pip = [sys.executable, PIP] if PIP.exists() else [sys.executable, "-m", "pip"]
    form = ["--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp"]
    run(*pip, "download", "--quiet", "--dest", folder / "wheels", *form, ROOT, "hatchling", "flask")
    return folder / "wheels"


def write_apps(folder: Path) -> Path:
    files = {
        "isowsgi.toml": CONFIG,
        "shop/shop/__init__.py": "",
        "shop/shop/wsgi.py": SHOP,
        "shop/requirements.txt": "",
        "blog/requirements.txt": "flask\n",
        "blog/app.py": (DEMO / "flask_app.py").read_text(),
        "blog/page.py": (DEMO / "page.py").read_text(),
        "Containerfile": (CONTAINER / "apps" / "Containerfile").read_text(),
    }
    for name, text in files.items():
        (folder / "apps" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "apps" / name).write_text(textwrap.dedent(text))
    return folder / "apps"


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_apps(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def engine(apps: Path) -> Iterator[Engine]:
    """Have the images `isowsgi` and `isowsgi-apps`, built as the page says."""
    with tempfile.TemporaryDirectory(prefix="isowsgi-image-") as name:
        folder = Path(name)
        engine = Engine(folder, fetch_wheels(folder))
        try:
            engine.podman("import", "--quiet", make_base(folder), "localhost/base")
            engine.follow("server", ROOT)
            engine.follow("apps", apps)
            yield engine
        finally:
            engine.close()


class Container:
    """One that runs, on a port of this machine."""

    def __init__(self, engine: Engine, name: str, uid: int) -> None:
        self._engine = engine
        self.name = name
        self.uid = uid
        self.port = 0

    @property
    def log_path(self) -> Path:
        return self._engine.folder / f"{self.name}.log"

    def entries(self) -> list[tuple[datetime, str]]:
        """Return what came from its standard output and error, a line each, with the engine's time."""
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        parts = [line.split(" ", 3) for line in lines]
        return [(datetime.fromisoformat(part[0]), part[3]) for part in parts if len(part) == 4]

    def log(self) -> str:
        return "\n".join(text for _, text in self.entries())

    def state(self) -> dict[str, Any]:
        [found] = json.loads(self._engine.podman("inspect", self.name))
        state: dict[str, Any] = found["State"]
        return state

    @property
    def pid(self) -> int:
        return int(self.state()["Pid"])

    def learn_port(self) -> None:
        found = eventually(lambda: re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.log()), "gunicorn listens")
        self.port = int(found[1])

    def get(self, path: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE_S)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)

    def is_ready(self) -> bool:
        try:
            return self.get("/-/isowsgi/ready").status_code == 200
        except requests.ConnectionError:
            return False

    def exec(self, *command: str) -> int:
        try:
            self._engine.podman("exec", self.name, *command)
        except AssertionError:
            return 1
        return 0

    def wait(self) -> int:
        return int(self._engine.podman("wait", self.name))

    def stop(self) -> int:
        """End it as `podman stop` does, and return its exit code."""
        self._engine.podman("stop", self.name)
        return self.wait()


# What a careful operator, and Kubernetes' restricted pods, take away.
LOCKED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", "512m")
# What is written to. The image has no other shell than Debian's.
PLACES = ("--tmpfs", "/run/isowsgi", "--tmpfs", "/tmp", "--volume", "/dev/null:/usr/bin/dash:ro")
GUNICORN = ("gunicorn", "--config", "/etc/isowsgi/gunicorn.conf.py")


@contextmanager
def running(
    engine: Engine, *options: str | Path, command: Sequence[str] = (*GUNICORN, "--bind", "127.0.0.1:0"), network: str = "host"
) -> Iterator[Container]:
    # None that /etc/passwd of the image has: it has no such file.
    container = Container(engine, f"isowsgi-{random.randrange(1 << 32):08x}", random.randrange(20_000, 60_000))
    user = f"{container.uid}:{container.uid}"
    log = ["--log-driver", "k8s-file", "--log-opt", f"path={container.log_path}"]
    given = ["--stop-timeout", "50", *log, *LOCKED, *PLACES, *options]
    engine.podman("run", "--detach", "--name", container.name, "--user", user, *given, "isowsgi-apps", *command, NETWORK=network)
    try:
        yield container
    except BaseException:
        print(container.log())
        raise
    finally:
        engine.podman("rm", "--force", "--time", "0", container.name)


@pytest.fixture(scope="module")
def container(engine: Engine) -> Iterator[Container]:
    with running(engine) as container:
        container.learn_port()
        eventually(container.is_ready, "it is ready")
        yield container


def facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# From the start of the first process until the Flask app serves, in seconds: 0.7 with two cores idle, and 3 with six other suites on them.
# Without bytecode or verdicts it would be more than twice that.
LONGEST_START_S = 30


def test_an_app_serves_at_once_as_its_isolation_was_found_when_the_image_was_built(container: Container) -> None:
    assert container.get("/blog/").status_code == 200
    assert container.get("/shop/").text == "shop"

    serving = next(time for time, line in container.entries() if "/blog #1: serving" in line)
    took_s = (serving - datetime.fromisoformat(container.state()["StartedAt"])).total_seconds()
    print(f"\n/blog serves {took_s:.2f} s after the start of the container")
    assert 0 < took_s < LONGEST_START_S
    assert "testing which isolation" not in container.log()


def test_it_has_no_right_and_writes_to_nothing_but_memory(container: Container) -> None:
    pid = container.pid
    status = facts(pid)
    assert status["Uid"].split() == [str(container.uid)] * 4
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 4

    mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    writable = {kind for _, _, kind, options, *_ in mounts if "rw" in options.split(",")}
    assert writable <= {"tmpfs", "proc", "devpts", "mqueue"}
    answers = {place: container.get(f"/shop/write{place}/new").text for place in ("/srv", "/opt/isowsgi", "/etc", "/run/isowsgi", "/tmp")}
    assert answers == {**dict.fromkeys(answers, "OSError 30"), "/run/isowsgi": "shop", "/tmp": "shop"}


def test_the_first_process_waits_for_what_apps_leave_behind(container: Container) -> None:
    """It ends with 3, by which a worker of gunicorn's would say that it cannot boot."""
    orphans = [container.get("/shop/orphan").text for _ in range(5)]
    assert all(orphan.strip().isdigit() for orphan in orphans)

    def zombies() -> list[str]:
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        return [pid for pid in children if facts(int(pid))["State"].startswith("Z")]

    eventually(lambda: not zombies(), "nothing is left of them")
    assert container.get("/shop/").text == "shop"
    assert "Shutting down" not in container.log()


def test_podman_stop_costs_no_request(engine: Engine) -> None:
    with running(engine) as container:
        container.learn_port()
        eventually(container.is_ready, "it is ready")
        codes: list[int] = []
        stopping = threading.Thread(target=lambda: codes.append(container.stop()))
        with Load(container.connect, ["/blog/", "/shop/"]) as load:
            stopping.start()
            # As a balancer does: no new request once it is not ready.
            eventually(lambda: not container.is_ready(), "it says that it stops")
            assert "stopping in" in container.log()
        stopping.join()

        assert load.failures == []
        assert load.answered == load.sent
        assert codes == [0]
        assert "Worker exiting" in container.log()


def test_the_health_check_says_whether_all_mounts_serve(engine: Engine, tmp_path: Path) -> None:
    [image] = json.loads(engine.podman("image", "inspect", "isowsgi-apps"))
    kind, *check = image["Healthcheck"]["Test"]
    assert kind == "CMD"
    (tmp_path / "isowsgi.toml").write_text(CONFIG.replace("[mounts]\n", '[mounts]\n"/broken" = { app = "no_such_app" }\n'))
    broken = tmp_path / "isowsgi.toml"

    with running(engine, command=(), network="none") as container:
        eventually(lambda: container.exec(*check) == 0, "healthy")
    with running(engine, "--volume", f"{broken}:/etc/isowsgi/isowsgi.toml:ro", command=(), network="none") as container:
        eventually(lambda: "main #1: serving" in container.log(), "the status page serves")
        assert container.exec(*check) == 1


@pytest.mark.parametrize(
    ("mounts", "code", "text"),
    [('"blog" = "app:app"', 1, "expected '/blog'"), ('"/broken" = "no_such_app"', 4, "No module named 'no_such_app'")],
    ids=["faulty config", "no app loads"],
)
def test_its_exit_code_is_gunicorn_s(engine: Engine, tmp_path: Path, mounts: str, code: int, text: str) -> None:
    config = tmp_path / "isowsgi.toml"
    config.write_text(f"[mounts]\n{mounts}\n[control]\nfolder = '/run/isowsgi/control'\n")

    with running(engine, "--volume", f"{config}:/etc/isowsgi/isowsgi.toml:ro", command=(), network="none") as container:
        assert container.wait() == code
        assert text in container.log()


def test_the_page_s_commands_run_it_and_apps_from_volumes(engine: Engine, apps: Path) -> None:
    """Their containers have no network, so what asks them is run inside."""
    [image] = json.loads(engine.podman("image", "inspect", "isowsgi-apps"))
    check = image["Healthcheck"]["Test"][1:]

    engine.follow("run", apps)
    container = Container(engine, "apps", 10001)
    eventually(lambda: container.exec(*check) == 0, "healthy")
    shown = engine.follow("look", apps)
    assert all(pattern in shown for pattern in ("/blog", "/shop", "/-/isowsgi"))
    assert container.stop() == 0

    config = apps / "isowsgi.toml"
    config.write_text("".join(line for line in CONFIG.splitlines(keepends=True) if "/shop" not in line))
    engine.follow("volumes", apps)
    container = Container(engine, "volumes", 10001)
    eventually(lambda: container.exec(*check) == 0, "healthy")
    assert container.stop() == 0
