"""What boot orders say."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest
from gunicorn.config import Config

from isowsgi.configuration import App, Mount, crossing
from isowsgi.instances.bootorder import BootOrders, first_python
from tests.orders import any_orders

V4, V6, UNIX = ("127.0.0.1", 80), ("::1", 80, 0, 0), "/run/isowsgi.sock"


@pytest.mark.parametrize(
    ("listeners", "family"),
    [
        ([V4], socket.AF_INET),
        ([V4, V4], socket.AF_INET),
        ([V6], socket.AF_INET6),
        ([UNIX], socket.AF_UNIX),
        ([V4, UNIX], 0),
        ([V4, V6], 0),
        ([], 0),
    ],
)
def test_the_family_of_connections_is_told_only_if_all_listeners_have_it(listeners: list[Any], family: int) -> None:
    """An instance does not ask the kernel then, for each connection that comes."""
    mount = Mount(pattern="/a", prefix="/a", app=App(kind="module", target="tried", call="application"))
    orders = BootOrders(crossing.snapshot(Config()), Config(), listeners, report_files=False)

    serving = orders.write([mount], "own-gil", 0, 1, 1).serving
    assert serving.family == family
    assert serving.listeners == [list(address) for address in listeners if address is not UNIX]


def test_an_order_for_a_sandbox_names_what_is_the_apps_and_not_gunicorns_folder() -> None:
    """Ports and Unix sockets are told apart; and an app that may have been taken over teaches no fork server what to import."""
    allowed = {"connect": ("127.0.0.1:5432", "unix:/run/postgresql"), "write": ("/srv/media",)}
    app = App(kind="script", target="/srv/shop/app.wsgi", call="application")
    mount = Mount(pattern="/a", prefix="/a", app=app, pythonpath=("/srv/lib",), preload=("auto",), sandbox=allowed, isolation="process")
    order = any_orders([mount]).write([mount], "process", 0, 1, 1)

    assert order.walls is not None
    sandbox = order.walls.sandbox
    assert sandbox is not None
    assert (sandbox.code, sandbox.write) == (["/srv/lib", "/srv/shop"], ["/srv/media"])
    assert (sandbox.connect, sandbox.sockets, sandbox.listen) == ([5432], ["/run/postgresql"], [])
    assert not order.environment.learns


@pytest.mark.parametrize(
    ("said", "starts"), [({"nice": 5, "umask": "027"}, True), ({"sandbox": {}}, False), ({"limits": {"files": 100.0}}, False), ({}, True)]
)
def test_only_what_keeps_an_app_from_something_keeps_its_python_from_a_fork_server(said: dict[str, Any], starts: bool) -> None:
    """`nice` alone cost a mount its copies."""
    mount = Mount(pattern="/a", prefix="/a", app=App(kind="module", target="a", call="a"), python=sys.executable, **said)

    order = any_orders([mount]).write([mount], "process", 0, 1, 1)

    assert (first_python(order) is not None) == starts
