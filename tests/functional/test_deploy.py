"""The files of deploy/, run as they are shipped: only paths, addresses and the user are replaced.

There is no systemd here to start the units, so `Service` does what they say: it runs their command lines, holds the socket, and passes it
on as systemd would. nginx is Debian's.
"""

from __future__ import annotations

import getpass
import grp
import hashlib
import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.conftest import APPS, DEADLINE_S, ROOT, eventually, receive_all
from tests.load import PAUSE_S

DEPLOY = ROOT / "deploy"

# What systemd does before it runs ExecStart: the socket becomes descriptor 3, and the environment says whose it is.
PASS_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def needs(*programs: str) -> None:
    """Skip the test where a program is not installed; .ci/run installs them all."""
    missing = [program for program in programs if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, not installed here")


def settings_of(unit: str) -> dict[str, list[str]]:
    """Read a unit file: each setting's values in order, whatever the section."""
    settings: dict[str, list[str]] = {}
    for line in unit.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            settings.setdefault(name, []).append(value)
    return settings


class Installation:
    """A copy of deploy/ in a folder that stands for the root of a machine, with the apps that its config file names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gunicorn = Path(sys.executable).with_name("gunicorn")
        self.socket = root / "run" / "isowsgi.sock"
        self.access_log = root / "var/log/isowsgi/access.log"
        self._moved = {
            path: f"{root}{path}"
            for path in ("/etc/isowsgi", "/srv", "/var/log/isowsgi", "/var/lib/isowsgi", "/run/isowsgi", "/etc/ssl/isowsgi")
        }
        for folder in ("etc/isowsgi", "var/log/isowsgi", "var/lib/isowsgi", "run", "srv/blog", "srv/shop/shop", "srv/legacy"):
            (root / folder).mkdir(parents=True)
        for app in ("srv/blog/blog.py", "srv/shop/shop/wsgi.py", "srv/legacy/app.wsgi"):
            shutil.copy(APPS / "deployed.py", root / app)
        for project in ("blog", "shop"):
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "srv" / project / ".venv"], check=True)
        (root / "etc/isowsgi/shop.env").write_text("SHOP_SECRET=42\n")
        for name in ("gunicorn.conf.py", "isowsgi.toml"):
            (root / "etc/isowsgi" / name).write_text(self.read(name))

    def read(self, name: str, **more: str) -> str:
        """Return the text of a file in deploy/ with the paths of this installation in it."""
        replaced = {**self._moved, "/opt/isowsgi/bin/gunicorn": str(self.gunicorn), **more}
        replaced["/opt/isowsgi/bin/isowsgi"] = f"{sys.executable} -m isowsgi"
        # Longest first: /etc/isowsgi is a part of no other path, but a caller's address may be.
        pattern = "|".join(re.escape(old) for old in sorted(replaced, key=len, reverse=True))
        return re.sub(pattern, lambda match: replaced[match[0]], (DEPLOY / name).read_text())


class Service:
    """What systemd makes of isowsgi.socket and isowsgi.service, as far as it concerns gunicorn."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.unit = settings_of(installation.read("systemd/isowsgi.service"))
        self.output = installation.root / "output"
        self.process: subprocess.Popen[bytes] | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        path = settings_of(installation.read("systemd/isowsgi.socket"))["ListenStream"][0]
        self._listener.bind(path)
        self._listener.listen(2048)

    @property
    def environ(self) -> dict[str, str]:
        # Little more than systemd's own. isowsgi may be here as a checkout only.
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": os.pathsep.join(paths)}

    def _run(self, *lines: str) -> None:
        main = "" if self.process is None else str(self.process.pid)
        with open(self.output, "ab") as output:
            for line in lines:
                command = [word.replace("$MAINPID", main) for word in shlex.split(line)]
                subprocess.run(command, cwd=self.unit["WorkingDirectory"][0], env=self.environ, check=True, stdout=output, stderr=output)

    def start(self, **environ: str) -> None:
        self._run(*self.unit["ExecStartPre"])
        command = shlex.split(self.unit["ExecStart"][0])
        self.process = self.spawn(
            [sys.executable, "-c", PASS_SOCKET, str(self._listener.fileno()), *command], environ, [self._listener.fileno()]
        )

    def spawn(self, command: list[str], environ: dict[str, str], descriptors: list[int]) -> subprocess.Popen[bytes]:
        with open(self.output, "ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.unit["WorkingDirectory"][0],
                env={**self.environ, **environ},
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def reload(self) -> None:
        self._run(*self.unit["ExecReload"])

    def stop(self) -> int:
        """End it as KillMode=mixed does, by a TERM to the main process alone."""
        assert self.process is not None, "started"
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(float(self.unit["TimeoutStopSec"][0]))
        except subprocess.TimeoutExpired:
            workers = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for pid in [*map(int, workers), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"gunicorn did not end:\n{self.log()}") from None

    def close(self) -> None:
        if self.process is not None:
            self.stop()
        self._listener.close()

    def log(self) -> str:
        """What would be in the journal."""
        return self.output.read_text(errors="replace")

    def wait_until_serving(self, loads: int) -> None:
        """Wait until so many apps have been loaded since the first start."""

        def is_serving() -> bool:
            assert self.process is not None, "started"
            if self.process.poll() is not None:
                pytest.fail(f"gunicorn ended with {self.process.returncode}:\n{self.log()}")
            return len(re.findall(r"#\d+: serving", self.log())) >= loads

        eventually(is_serving, f"{loads} loaded apps")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        try:
            sock.connect(str(self.installation.socket))
        except OSError:
            sock.close()
            raise
        return sock

    def exchange(self, target: str) -> bytes:
        """Ask without nginx, and return the response as it is."""
        with self.connect() as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".encode())
            return receive_all(sock)


class Nginx:
    """nginx with the shipped site, as the current user."""

    def __init__(self, installation: Installation) -> None:
        root = installation.root / "nginx"
        self.certificate = installation.root / "etc/ssl/isowsgi/fullchain.pem"
        for folder in (root, self.certificate.parent):
            folder.mkdir(parents=True)
        self._make_certificate()
        # nginx takes no port 0. So the ports are taken here and nginx inherits them, as it does from the nginx that it replaces.
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.http_port, self.https_port = (sock.getsockname()[1] for sock in sockets)
        site = installation.read(
            "nginx/isowsgi.conf",
            **{"listen 80;": f"listen 127.0.0.1:{self.http_port};", "listen 443 ": f"listen 127.0.0.1:{self.https_port} "},
        )
        (root / "site.conf").write_text(site)
        temporary = "".join(f"{kind}_temp_path {root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (root / "nginx.conf").write_text(
            f"{f'user {getpass.getuser()};' if os.getuid() == 0 else ''}\n"
            "daemon off;\nworker_processes 1;\n"
            f"pid {root}/pid;\nerror_log {root}/error.log;\nevents {{}}\n"
            f"http {{\n{temporary}access_log off;\ninclude {root}/site.conf;\n}}\n"
        )
        self.error_log = root / "error.log"
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert program is not None, "checked by needs()"
        self.process = subprocess.Popen(
            [program, "-e", "stderr", "-p", str(root), "-c", str(root / "nginx.conf")],
            env={**os.environ, "NGINX": "".join(f"{sock.fileno()};" for sock in sockets)},
            pass_fds=[sock.fileno() for sock in sockets],
            stdin=subprocess.DEVNULL,
        )
        for sock in sockets:
            sock.close()
        self.session = self.new_session()

    def _make_certificate(self) -> None:
        key = self.certificate.with_name("privkey.pem")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                *("-keyout", key, "-out", self.certificate),
            ],
            check=True,
            capture_output=True,
        )

    def stop(self) -> None:
        self.session.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_S)

    def new_session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False  # a proxy in the environment is not for this
        session.verify = str(self.certificate)
        return session

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.https_port}{path}"

    def get(self, path: str, host: str = "example.com", **headers: str) -> requests.Response:
        return self.session.get(self.url(path), headers={"Host": host, **headers}, timeout=DEADLINE_S)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The service, not started."""
    service = Service(Installation(tmp_path))
    yield service
    service.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Nginx]]:
    """The service started, and nginx in front of it; one for all tests of this module, which may reload but not stop it."""
    needs("nginx", "openssl")
    service = Service(Installation(tmp_path_factory.mktemp("site")))
    with ExitStack() as stack:
        stack.callback(service.close)
        service.start()
        nginx = Nginx(service.installation)
        stack.callback(nginx.stop)
        yield service, nginx


@pytest.fixture
def nginx(site: tuple[Service, Nginx]) -> Nginx:
    return site[1]


# The units.


def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    needs("systemd-analyze")
    installation = Installation(tmp_path)
    units = []
    for name in ("isowsgi.service", "isowsgi.socket"):
        units.append(tmp_path / name)
        units[-1].write_text(installation.read(f"systemd/{name}"))

    verdict = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, "")


def test_the_service_serves_its_socket_and_says_when_it_is_ready(service: Service) -> None:
    notify_path = str(service.installation.root / "run/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.settimeout(DEADLINE_S)
        notify.bind(notify_path)
        service.start(NOTIFY_SOCKET=notify_path)
        message, credentials, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(12))

    assert b"READY=1" in message.split(b"\n")
    assert service.process is not None
    assert struct.unpack("iii", credentials[0][2])[0] == service.process.pid, "NotifyAccess=main takes it from no other"
    assert b'"isowsgi.mount": "/blog"' in service.exchange("/blog/x")
    assert service.stop() == 0
    assert service.installation.socket.exists(), "it is systemd's"


def test_systemds_own_tool_can_start_it(service: Service) -> None:
    """systemd-socket-activate runs the command at the first connection, with an environment of next to nothing."""
    needs("systemd-socket-activate")
    service.installation.socket.unlink()
    given = [f"--setenv={name}={value}" for name, value in service.environ.items()]
    command = shlex.split(service.unit["ExecStart"][0])
    service.process = service.spawn(["systemd-socket-activate", f"--listen={service.installation.socket}", *given, *command], {}, [])
    eventually(service.installation.socket.exists, "the socket")

    assert b'"isowsgi.mount": "/shop"' in eventually(lambda: _unless_refused(service, "/shop"), "a connection")


def _unless_refused(service: Service, target: str) -> bytes | None:
    try:
        return service.exchange(target)
    except ConnectionRefusedError:  # between bind() and listen()
        return None


def test_the_conf_file_also_serves_without_systemd(service: Service) -> None:
    """Then `bind` counts, which an inherited socket overrides."""
    service.process = service.spawn(shlex.split(service.unit["ExecStart"][0]), {}, [])
    service.wait_until_serving(3)

    assert b'"SHOP_SECRET": "42"' in service.exchange("/shop")
    assert service.stop() == 0
    assert not service.installation.socket.exists()


def test_clients_wait_while_the_service_restarts(service: Service) -> None:
    service.start()
    assert b"200 OK" in service.exchange("/blog")
    service.stop()

    with service.connect() as waiting:
        waiting.sendall(b"GET /blog HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
        service.start()
        assert b"200 OK" in receive_all(waiting)


def test_a_fault_in_the_config_file_fails_the_start_and_the_reload(service: Service) -> None:
    config = service.installation.root / "etc/isowsgi/isowsgi.toml"
    good = config.read_text()
    bad = good.replace("threads = 8", "threads = 0")

    config.write_text(bad)
    with pytest.raises(subprocess.CalledProcessError):
        service.start()
    assert service.process is None
    assert re.search(r"isowsgi.toml: mounts\.\"?/shop\"?\.threads: ", service.log()), service.log()

    config.write_text(good)
    service.start()
    service.wait_until_serving(3)
    config.write_text(bad)
    with pytest.raises(subprocess.CalledProcessError):
        service.reload()
    assert "Handling signal: hup" not in service.log()
    assert b"200 OK" in service.exchange("/shop")


def test_the_times_of_the_unit_the_conf_file_and_the_site_fit(service: Service) -> None:
    conf: dict[str, object] = {}
    exec((DEPLOY / "gunicorn.conf.py").read_text(), conf)
    site = (DEPLOY / "nginx/isowsgi.conf").read_text()
    idle = re.search(r"keepalive_timeout (\d+)s;", site)
    assert idle is not None

    assert float(service.unit["TimeoutStopSec"][0]) > float(str(conf["graceful_timeout"]))
    assert float(str(conf["keepalive"])) > float(idle[1]), "nginx must be the one who closes an idle connection"


# The site.


def test_one_connection_from_nginx_carries_requests_of_several_mounts(nginx: Nginx) -> None:
    came_by = []
    for _ in range(5):
        came_by += [nginx.get("/blog/1").json(), nginx.get("/shop/cart").json(), nginx.get("/", host="old.example.com").json()]

    assert {facts["isowsgi.mount"] for facts in came_by} == {"/blog", "/shop", "old.example.com/"}
    assert len({facts["connection"] for facts in came_by}) == 1
    assert len({facts["pid"] for facts in came_by}) == 1


def test_an_app_behind_nginx_sees_the_clients_request(nginx: Nginx) -> None:
    facts = nginx.get("/shop/a%2Fb//c/%C3%A9?q=%20").json()

    assert facts["wsgi.url_scheme"] == "https"
    assert facts["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
    assert facts["HTTP_HOST"] == "example.com"
    assert facts["RAW_URI"] == "/shop/a%2Fb//c/%C3%A9?q=%20"
    assert (facts["SCRIPT_NAME"], facts["PATH_INFO"]) == ("/shop", "/a/b//c/Ã©")
    assert facts["SHOP_SECRET"] == "42"


def test_what_a_client_claims_in_a_proxys_name_is_dropped(nginx: Nginx) -> None:
    claims = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http", "SCRIPT_NAME": "/shop", "Connection": "keep-alive"}
    response = nginx.get("/blog/x", **claims)

    facts = response.json()
    assert (facts["HTTP_X_FORWARDED_FOR"], facts["wsgi.url_scheme"]) == ("127.0.0.1", "https")
    assert (facts["isowsgi.mount"], facts["SCRIPT_NAME"], facts["PATH_INFO"]) == ("/blog", "/blog", "/x")


def test_nginx_sends_http_to_https(nginx: Nginx) -> None:
    with nginx.new_session() as session:
        response = session.get(f"http://127.0.0.1:{nginx.http_port}/blog?a=1", headers={"Host": "example.com"}, allow_redirects=False)

    assert (response.status_code, response.headers["Location"]) == (301, "https://example.com/blog?a=1")


def test_an_address_that_no_mount_has_is_answered_404_through_nginx(nginx: Nginx) -> None:
    """The acceptor answers it and closes; nginx must pass it on all the same, and open another connection for the next."""
    assert nginx.get("/nothing/here").status_code == 404
    assert nginx.get("/blog").status_code == 200


def test_big_bodies_pass_through_nginx_both_ways(nginx: Nginx) -> None:
    size = 32 * 1024 * 1024
    body = os.urandom(1024) * (size // 1024)

    upload = nginx.session.post(nginx.url("/shop/upload"), data=body, timeout=DEADLINE_S).json()
    download = nginx.get(f"/blog/download?bytes={size}").content

    assert (upload["length"], upload["sha256"]) == (size, hashlib.sha256(body).hexdigest())
    assert download == b"x" * size


def test_a_chunked_upload_passes_through_nginx(nginx: Nginx) -> None:
    chunks = [os.urandom(size) for size in (1, 100_000, 3)]

    answer = nginx.session.post(nginx.url("/blog/upload"), data=iter(chunks), timeout=DEADLINE_S).json()

    assert answer["sha256"] == hashlib.sha256(b"".join(chunks)).hexdigest()


def test_nginx_refuses_a_body_that_is_too_large_before_it_is_sent(nginx: Nginx) -> None:
    context = ssl.create_default_context(cafile=str(nginx.certificate))
    connection = http.client.HTTPSConnection("127.0.0.1", nginx.https_port, timeout=DEADLINE_S, context=context)
    connection.putrequest("POST", "/blog/upload")
    connection.putheader("Content-Length", str(100 * 1024 * 1024 + 1))
    connection.endheaders()

    assert connection.getresponse().status == 413
    connection.close()


def test_a_head_that_nginx_lets_through_is_not_too_large_for_gunicorn(nginx: Nginx) -> None:
    """The limits fit: nginx takes 32 KiB, and the fields it adds do not make a head that isowsgi refuses."""
    response = nginx.get("/blog", **{f"X-Large-{number}": "x" * 8000 for number in range(3)})

    assert response.status_code == 200
    assert len(response.json()["HTTP_X_LARGE_2"]) == 8000


def test_a_touch_loads_one_app_anew_and_no_other(site: tuple[Service, Nginx]) -> None:
    service, nginx = site
    shop, blog = nginx.get("/shop").json(), nginx.get("/blog").json()

    (service.installation.root / "srv/shop/reload").touch()

    generation = shop["isowsgi.generation"]
    eventually(lambda: nginx.get("/shop").json()["isowsgi.generation"] == generation + 1, "the next generation")
    assert nginx.get("/blog").json()["isowsgi.generation"] == blog["isowsgi.generation"]


def test_no_request_fails_while_the_service_is_reloaded(site: tuple[Service, Nginx]) -> None:
    service, nginx = site
    nginx.get("/blog")
    loads_before = len(re.findall(r"#\d+: serving", service.log()))
    statuses: list[int | str] = []
    pids: set[int] = set()
    is_over = threading.Event()

    def load(path: str) -> None:
        with nginx.new_session() as session:
            while not is_over.wait(PAUSE_S):
                try:
                    response = session.post(nginx.url(path), data=b"body", timeout=DEADLINE_S)
                except requests.RequestException as exc:
                    statuses.append(repr(exc))
                    return
                statuses.append(response.status_code)
                if response.status_code == 200:
                    pids.add(response.json()["pid"])

    threads = [threading.Thread(target=load, args=(path,)) for path in ("/blog", "/shop", "/blog", "/shop")]
    for thread in threads:
        thread.start()
    try:
        eventually(partial(_has_more, pids, 0), "requests before the reload")
        _edit(service, "isowsgi.toml", "threads = 8", "threads = 7")
        service.reload()
        eventually(lambda: "/shop #2: serving" in service.log() or "/shop #3: serving" in service.log(), "another /shop")
        assert len(re.findall(r"#\d+: serving", service.log())) == loads_before + 1, "that alone was loaded"
        assert len(pids) == 1
        _edit(service, "gunicorn.conf.py", "keepalive = 75", "keepalive = 74")
        service.reload()
        service.wait_until_serving(loads_before + 4)
        eventually(partial(_has_more, pids, 1), "requests after the reload")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()

    assert len(pids) == 2, "only what gunicorn itself reads needs another worker"
    assert set(statuses) == {200}


def _edit(service: Service, name: str, old: str, new: str) -> None:
    path = service.installation.root / "etc/isowsgi" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# The logs.


def test_the_access_log_says_which_client_and_which_mount(site: tuple[Service, Nginx]) -> None:
    service, nginx = site
    mark = f"/shop/{time.monotonic_ns()}"
    nginx.get(mark)

    def line() -> str | None:
        lines = service.installation.access_log.read_text().splitlines()
        return next((line for line in lines if mark in line), None)

    entry = eventually(line, "a line in the access log")
    assert re.fullmatch(rf'127\.0\.0\.1 \[[^]]+\] "GET {mark} HTTP/1\.1" 200 \d+ \d+ms "python-requests/\S+" /shop #\d+', entry)


def test_logrotate_moves_the_access_log_and_every_interpreter_follows(site: tuple[Service, Nginx]) -> None:
    """`systemctl kill` needs a systemd, so a program of that name does what was asked."""
    needs("logrotate")
    service, nginx = site
    assert service.process is not None
    root, log = service.installation.root, service.installation.access_log
    tools = root / "tools"
    tools.mkdir()
    asked = tools / "asked"
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >{asked}\nkill -USR1 {service.process.pid}\n')
    (tools / "systemctl").chmod(0o755)
    group = grp.getgrgid(os.getgid()).gr_name
    rules = service.installation.read("logrotate/isowsgi", **{"su isowsgi isowsgi": f"su {getpass.getuser()} {group}"})
    (root / "logrotate.conf").write_text(rules)
    nginx.get("/blog/before")
    eventually(lambda: log.exists() and "/blog/before" in log.read_text(), "a line in the access log")

    subprocess.run(
        [
            shutil.which("logrotate", path="/usr/sbin:/usr/bin") or "logrotate",
            "--force",
            "--state",
            root / "logrotate.state",
            root / "logrotate.conf",
        ],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        check=True,
        timeout=DEADLINE_S,
    )

    assert asked.read_text().split() == ["kill", "--signal=USR1", "--kill-who=main", "isowsgi.service"]
    rotated = log.with_name("access.log.1")
    assert "/blog/before" in rotated.read_text()
    for path in ("/blog/after", "/shop/after", "/nothing/after"):  # two interpreters, and the acceptor's own log

        def is_in_new_file(path: str = path) -> bool:
            nginx.get(path)
            return log.exists() and path in log.read_text()

        eventually(is_in_new_file, f"{path} in the new file")


def _has_more(seen: Collection[object], count: int) -> bool:
    return len(seen) > count
