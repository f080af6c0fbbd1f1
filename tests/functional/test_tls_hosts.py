"""Certificates by host: `[[tls]]` beside gunicorn's own certificate and without it, and how renewed ones are taken up."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.certificates import Authority
from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, Server, StartServer, eventually, receive_all, running_server
from tests.functional.test_apply import apply
from tests.otherusers import needs_users

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

FILES = {
    "says.py": """
import os
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.environ['MOUNT']} {environ['wsgi.url_scheme']} {environ['HTTP_HOST']}".encode()]
""",
}
MOUNTS = """
[control]
folder = "control"
[mounts]
"a.example/" = { app = "says", env = { MOUNT = "a" } }
"b.example/" = { app = "says", env = { MOUNT = "b" } }
"""
STATUS = '"/status" = { app = "isowsgi.status:application", isolation = "shared-gil" }\n'


class Pairs(NamedTuple):
    """Certificates and their keys, and who has signed them."""

    authority: Authority
    folder: Path

    def sign(self, name: str, *hosts: str) -> tuple[Path, Path]:
        return self.authority.sign("server", f"/CN={name}", name, hosts or ("localhost",))

    def put(self, name: str, source: str, key: str = "") -> None:
        """Put a pair in the place of another."""
        shutil.copy(self.folder / f"{source}.pem", self.folder / f"{name}.pem")
        shutil.copy(self.folder / f"{key or source}.key", self.folder / f"{name}.key")

    def table(self, name: str, *hosts: str) -> str:
        return f"""
[[tls]]
hosts = {json.dumps(hosts)}
certificate = "{self.folder}/{name}.pem"
key = "{self.folder}/{name}.key"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("pairs")
    pairs = Pairs(Authority(folder), folder)
    pairs.sign("first", "a.example", "*.a.example")
    pairs.sign("second", "b.example")
    pairs.sign("third", "a.example", "b.example", "c.example")
    pairs.sign("own")
    return pairs


@pytest.fixture
def pairs(made: Pairs, tmp_path: Path) -> Pairs:
    """Copies, for tests that change them."""
    folder = tmp_path / "pairs"
    shutil.copytree(made.folder, folder)
    return Pairs(made.authority, folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, made: Pairs) -> Iterator[Server]:
    """Without a certificate of gunicorn's own."""
    config = MOUNTS + STATUS + made.table("first", "a.example", "*.a.example") + made.table("second", "b.example")
    with running_server(tmp_path_factory.mktemp("server"), config, files=FILES, wait_for=3) as server:
        yield server


def connect(server: Server, name: str | None, **settings: Any) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for key, value in settings.items():
        setattr(context, key, value)
    return context.wrap_socket(server.connect(), server_hostname=name)


def subject(server: Server, name: str | None, **settings: Any) -> str:
    """Return whose certificate a client gets that asks for a host."""
    with connect(server, name, **settings) as sock:
        found = sock.getpeercert(binary_form=True)
    assert found is not None
    return next(name for name in ("first", "second", "third", "own") if name.encode() in found)


def answer(server: Server, name: str | None, host: str, path: str = "/") -> str:
    """Return the body of an answer to a client that asks for one host in TLS and another one in its request."""
    with connect(server, name) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return receive_all(sock).partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_host_has_its_certificate_and_all_others_the_first(server: Server, version: ssl.TLSVersion) -> None:
    names = ["a.example", "A.EXAMPLE", "www.a.example", "b.example", "x.b.example", "unknown.example", None]

    found = [subject(server, name, maximum_version=version) for name in names]

    assert found == ["first", "first", "first", "second", "first", "first", "first"]


def test_clients_that_verify_are_content(server: Server, made: Pairs) -> None:
    for host in ("a.example", "www.a.example", "b.example"):
        with made.authority.client_context().wrap_socket(server.connect(), server_hostname=host):
            pass
    command = [
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{server.port}",
        "-servername",
        "b.example",
        "-CAfile",
        str(made.authority.path),
    ]
    shown = subprocess.run(command, input="", capture_output=True, text=True, timeout=DEADLINE_S, check=False).stdout
    assert "Verify return code: 0 (ok)" in shown
    assert "CN = second" in shown or "CN=second" in shown


def test_requests_are_routed_by_their_host_field_and_apps_know_of_tls(server: Server) -> None:
    assert answer(server, "a.example", "a.example") == "a https a.example"
    assert answer(server, "a.example", "b.example") == "b https b.example"
    assert answer(server, None, "b.example") == "b https b.example"


def test_a_host_that_is_not_ascii_costs_its_connection_and_no_line_on_stderr(server: Server) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tls = context.wrap_bio(incoming, outgoing, server_hostname="zz.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with server.connect() as sock:
        sock.sendall(outgoing.read().replace(b"zz.example", b"\xff\xfe.example"))
        assert sock.recv(100)[:1] in (b"\x15", b""), "an alert"

    assert subject(server, "b.example") == "second"
    assert "UnicodeDecodeError" not in server.output() + server.log()


def test_expiry_is_shown_in_status_and_metrics(server: Server, made: Pairs) -> None:
    shown = json.loads(call(server.folder, "status", "--json").stdout)
    told = json.loads(answer(server, None, "localhost", "/status/status.json"))
    metrics = answer(server, None, "localhost", "/status/metrics")

    for worker in (shown["workers"][0], told["workers"][0]):
        assert [(each["hosts"], each["path"]) for each in worker["certificates"]] == [
            (["a.example", "*.a.example"], f"{made.folder}/first.pem"), (["b.example"], f"{made.folder}/second.pem"),
        ]  # fmt: skip
    expires = told["workers"][0]["certificates"][1]["expires"]
    assert f'isowsgi_certificate_expiry_timestamp_seconds{{certificate="{made.folder}/second.pem"}} ' in metrics
    assert 0 < expires - told["now"] <= 2 * 24 * 3600


def edit(server: Server, tables: str) -> None:
    """Write other certificates into the config file."""
    path = server.folder / "isowsgi.toml"
    path.write_text(path.read_text().partition("\n[[tls]]")[0] + tables)


def all_serve(server: Server, name: str, expected: str) -> None:
    eventually(lambda: {subject(server, name) for _ in range(6)} == {expected}, f"{expected} from all workers")


def test_certificates_are_renewed_added_and_taken_away_and_no_app_is_touched(serve: StartServer, pairs: Pairs) -> None:
    options = ["--certfile", str(pairs.folder / "own.pem"), "--keyfile", str(pairs.folder / "own.key"), "--workers", "2"]
    first, second = pairs.table("first", "a.example"), pairs.table("second", "b.example")
    server = serve(MOUNTS + first, *options, files=FILES, wait_for=4)
    boots = server.log().count(": serving")
    assert [subject(server, name) for name in ("a.example", "b.example", None)] == ["first", "own", "own"]
    assert apply(server).stdout == "no difference: what runs is what the config file says\n"

    pairs.put("first", "third")
    shown = apply(server)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"~ certificate {pairs.folder}/first.pem  in place\n1 changed\napplied in 2 of 2 workers\n"
    all_serve(server, "a.example", "third")

    edit(server, first + second)
    assert apply(server).returncode == 0
    all_serve(server, "b.example", "second")

    # A renewed pair that does not fit: the rest of a change is applied, and the old one stays, in workers that come later too.
    pairs.put("second", "own", key="first")
    edit(server, first.replace("a.example", "x.example") + second)
    shown = apply(server)
    assert shown.returncode == 1
    assert f"isowsgi.toml: tls[1]: cannot serve with '{pairs.folder}/second.pem' and its key" in shown.stderr
    assert "the key is not this certificate's" in shown.stderr
    all_serve(server, "x.example", "third")
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for_log(": serving", boots + 2)
    eventually(lambda: len(server.workers()) == 2)
    all_serve(server, "b.example", "second")
    all_serve(server, "a.example", "own")

    # A new table whose files are faulty: no table changes.
    edit(server, pairs.table("nothing", "c.example"))
    shown = apply(server)
    assert shown.returncode == 1
    assert f"tls[0].certificate: cannot read '{pairs.folder}/nothing.pem': no such file or directory" in shown.stderr
    all_serve(server, "x.example", "third")

    edit(server, "")
    assert apply(server).returncode == 0
    all_serve(server, "x.example", "own")
    assert server.log().count(": serving") == boots + 2


def test_at_the_start_a_faulty_pair_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text(MOUNTS + pairs.table("first", "a.example"))
    (tmp_path / "says.py").write_text(FILES["says.py"])
    (pairs.folder / "first.key").unlink()
    command = [sys.executable, "-m", "gunicorn", "-k", "isowsgi.Worker", "--check-config", "isowsgi.toml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert shown.returncode == 1
    assert f"isowsgi.toml: tls[0].key: cannot read '{pairs.folder}/first.key': no such file or directory" in shown.stderr


def test_client_certificates_are_wanted_for_every_host_alike(serve: StartServer, pairs: Pairs) -> None:
    tables = pairs.table("first", "a.example") + pairs.table("second", "b.example")
    server = serve(MOUNTS + tables, "--cert-reqs", "2", "--ca-certs", str(pairs.authority.path), files=FILES, wait_for=2)

    for name in ("a.example", "b.example", None):
        with pytest.raises((ssl.SSLError, ConnectionError)):  # in TLS 1.3 the client would only learn it later
            connect(server, name, maximum_version=ssl.TLSVersion.TLSv1_2)


def test_tls_is_switched_on_by_sighup_only(serve: StartServer, pairs: Pairs) -> None:
    server = serve(MOUNTS, files=FILES, wait_for=2)
    edit(server, pairs.table("second", "b.example", "d.example"))

    shown = apply(server)
    assert shown.returncode == 1
    assert "[[tls]]  needs SIGHUP to gunicorn" in shown.stdout
    assert "[[tls]] switches TLS on for all listeners; send SIGHUP" in shown.stderr
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\nHost: b.example\r\n\r\n")
        assert receive_all(sock).endswith(b"b http b.example")

    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(": serving", 4)
    eventually(lambda: len(server.workers()) == 1)
    assert answer(server, "b.example", "b.example") == "b https b.example"
    server.wait_for_log("it is not for d.example, so clients will refuse it there; it names b.example")


def test_a_pair_that_is_renewed_is_served_without_a_command_where_the_files_are_watched(serve: StartServer, pairs: Pairs) -> None:
    config = MOUNTS.replace("[control]", "[control]\nwatch = true") + pairs.table("first", "a.example")
    server = serve(config, files=FILES, wait_for=2)
    assert subject(server, "a.example") == "first"

    pairs.put("first", "third")

    all_serve(server, "a.example", "third")
    server.wait_for_log(f"serving with the renewed certificate {pairs.folder}/first.pem")
    assert "#2: serving" not in server.log()


@needs_users
def test_a_key_that_only_root_may_read_serves_workers_of_another_user_and_is_renewed_by_root(pairs: Pairs) -> None:
    (pairs.folder / "first.key").chmod(0o600)
    site = Path(tempfile.mkdtemp(prefix="isowsgi-tls-"))
    nobody = pwd.getpwnam("nobody")
    arguments = ["--user", "nobody", "--group", grp.getgrgid(nobody.pw_gid).gr_name, "--pythonpath", str(site)]
    for name in ("cache", "control"):
        (site / name).mkdir(0o700)
        os.chown(site / name, nobody.pw_uid, -1)
    try:
        site.chmod(0o755)
        config = MOUNTS + pairs.table("first", "a.example")
        with running_server(site, config, *arguments, files=FILES, wait_for=2, env={"ISOWSGI_CACHE_DIR": str(site / "cache")}) as server:
            [worker] = server.workers()
            assert os.stat(f"/proc/{worker}").st_uid == nobody.pw_uid
            assert subject(server, "a.example") == "first"

            pairs.put("first", "third")
            (pairs.folder / "first.key").chmod(0o600)
            shown = apply(server)

            assert shown.returncode == 0, shown.stdout + shown.stderr
            assert subject(server, "a.example") == "third"
    finally:
        shutil.rmtree(site)
