"""Hosts, wildcards and redirects: each request reaches the mount that its host names, on connections that are kept open too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, Server, shared_server
from tests.raw import Client

CONFIG = """
[control]
folder = "control"
[defaults]
threads = 1
[mounts]
"/" = "hello:environ"
"*.example/" = "hello:environ"
"shop.example/" = { app = "hello:environ", hosts = ["www.shop.example", "shop.test"] }
"shop.example/v1" = { app = "hello:environ", isolation = "process", hosts = ["*.test"] }
"old.example/" = { redirect = "https://www.example.com{path}", status = 301, hosts = ["older.example"] }
"/moved" = { redirect = "/v2{path}" }
"/misspelt" = "hello:enviro"
"/secure" = { app = "hello:environ", https_only = true, warmup = "/" }
"/later" = { app = "hello:environ", https_only = true, lazy = true }
"*.tenants/" = { app = "hello:environ", https_only = true, max_live = 2 }
"""
server = shared_server(CONFIG, wait_for=5)


def asked(client: Client, host: str, path: str) -> dict[str, Any]:
    """Ask on a connection that stays open; return what the app saw."""
    client.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    seen: dict[str, Any] = json.loads(client.answer().body)
    return seen


def test_each_request_of_a_connection_reaches_the_mount_of_its_host(server: Server) -> None:
    wanted = [
        ("shop.example", "/", "shop.example/"),
        ("SHOP.test:80", "/v2", "shop.example/"),
        ("www.shop.example.", "/", "shop.example/"),
        ("blog.example", "/", "*.example/"),
        ("shop.example", "/v1/x", "shop.example/v1"),
        ("shop.test", "/v1", "shop.example/"),
        ("blog.test", "/v1", "shop.example/v1"),
        ("blog.test", "/", "/"),
        ("a.blog.example", "/", "/"),
        ("example", "/", "/"),
        ("www.shop.example", "/v1", "shop.example/"),
    ]
    with Client(server) as client:
        seen = [asked(client, host, path) for host, path, _ in wanted * 2]

    assert [each["isowsgi.mount"] for each in seen] == [mount for _, _, mount in wanted] * 2
    assert [each["HTTP_HOST"] for each in seen] == [host for host, _, _ in wanted] * 2, "the app sees the host that was asked for"
    assert len({each["pid"] for each in seen if each["isowsgi.mount"] == "shop.example/"}) == 1


def test_another_host_is_taken_up_while_the_app_and_its_connections_go_on(server: Server) -> None:
    config = server.folder / "isowsgi.toml"
    config.write_text(config.read_text().replace('"shop.test"', '"new.test"'))
    with Client(server) as client:
        before = asked(client, "shop.example", "/")

        done = call(server.folder, "apply")

        assert (done.returncode, "in place" in done.stdout) == (0, True), done.stdout + done.stderr
        hosts = ("new.test", "shop.test", "shop.example")
        seen = [asked(client, host, "/") for host in hosts]
    assert [each["isowsgi.mount"] for each in seen] == ["shop.example/", "/", "shop.example/"]
    assert seen[0]["isowsgi.generation"] == before["isowsgi.generation"]


@pytest.mark.parametrize(
    ("host", "target", "status", "location"),
    [
        ("old.example", "/a%2Fb?x=1", 301, "https://www.example.com/a%2Fb?x=1"),
        ("old.example", "//evil.example/%0d%0aX: y", 400, None),
        ("old.example", "//evil.example/%0d%0a", 301, "https://www.example.com//evil.example/%0d%0a"),
        ("OLD.example:80", "http://old.example/x", 301, "https://www.example.com/x"),
        ("older.example", "/", 301, "https://www.example.com/"),
        ("x.test", "/moved/%C3%A9?q", 302, "/v2/%C3%A9?q"),
        ("x.test", "/moved", 302, "/v2"),
        ("x.test", "/secure/a?b", 301, "https://x.test/secure/a?b"),
    ],
)
def test_a_request_is_sent_elsewhere_without_an_app(server: Server, host: str, target: str, status: int, location: str | None) -> None:
    with Client(server) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
        answer = client.answer()

    assert (answer.status, answer.fields.get("location")) == (status, location)


def test_what_came_by_a_trusted_proxys_tls_reaches_the_app_and_what_follows_on_the_connection_need_not(server: Server) -> None:
    with Client(server) as client:
        for proto, status in (("https", 200), ("http", 301), ("https", 200)):
            client.send(f"GET /secure HTTP/1.1\r\nHost: x.test\r\nX-Forwarded-Proto: {proto}\r\n\r\n")
            assert client.answer().status == status


@pytest.mark.parametrize(("host", "path", "mount"), [("x.test", "/later", "/later"), ("a.tenants", "/", "a.tenants/")])
def test_no_app_is_loaded_for_a_request_that_is_only_sent_to_https(server: Server, host: str, path: str, mount: str) -> None:
    with Client(server) as client:
        client.send(f"POST {path}?q HTTP/1.1\r\nHost: {host}:80\r\nContent-Length: 0\r\n\r\n")
        answer = client.answer()
    with Client(server) as client:
        client.send(f"GET {path} HTTP/1.0\r\nHost: x/y\r\n\r\n" if mount == "/later" else "GET / HTTP/1.0\r\nHost: -.tenants\r\n\r\n")
        refused = client.answer().status

    assert (answer.status, answer.fields["location"]) == (308, f"https://{host}{path}?q")
    assert refused == (400 if mount == "/later" else 404)
    assert f"{mount} #1" not in server.log()
    with Client(server) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Proto: https\r\n\r\n")
        assert json.loads(client.answer().body)["isowsgi.mount"] == mount


def test_a_redirect_is_a_mount_that_serves_and_has_nothing_to_load(server: Server) -> None:
    status = call(server.folder, "status", "--json")
    refused = call(server.folder, "reload", "/moved")

    assert status.returncode == 0, status.stderr
    (moved,) = [mount for mount in json.loads(status.stdout)["workers"][0]["mounts"] if mount["mount"] == "/moved"]
    assert (moved["app"], moved["state"], moved["instances"]) == ("redirect to /v2{path}", "serving", [])
    assert (refused.returncode, "has no app" in refused.stdout + refused.stderr) == (1, True)


def test_another_worker_class_fails_at_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text("[mounts]\n'/' = 'hello'\n")
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind", "127.0.0.1:0", "--log-level", "error", "isowsgi.toml"]

    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if "isowsgi" in line] == [
        "isowsgi: gunicorn runs with another worker class, which cannot serve the apps of a config file; add -k isowsgi.Worker"
    ]


def test_a_misspelt_callable_is_told_which_one_is_meant(server: Server) -> None:
    server.wait_for_log(r"Failed to find attribute 'enviro' in 'hello'. Did you mean 'environ'\?")
