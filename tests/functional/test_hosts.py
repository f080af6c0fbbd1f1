"""One app at many hosts, and wildcard hosts: each request reaches the mount that its host names, on connections that are kept open too."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

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
"""
server = shared_server(CONFIG, wait_for=4)


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

        command = [sys.executable, "-m", "isowsgi", "apply"]
        env = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=server.folder, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

        assert (done.returncode, "in place" in done.stdout) == (0, True), done.stdout + done.stderr
        hosts = ("new.test", "shop.test", "shop.example")
        seen = [asked(client, host, "/") for host in hosts]
    assert [each["isowsgi.mount"] for each in seen] == ["shop.example/", "/", "shop.example/"]
    assert seen[0]["isowsgi.generation"] == before["isowsgi.generation"]
