"""What boot orders say."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from gunicorn.config import Config

from isowsgi.configuration import App, Mount, crossing
from isowsgi.instances.bootorder import BootOrders

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
