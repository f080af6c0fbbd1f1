"""The inside of an instance while its app is loaded: orders that come meanwhile count, whichever thread takes them in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isowsgi.inside.boot import Instance
from isowsgi.shared.messages import Reroute
from isowsgi.shared.routing import Route
from tests.orders import any_order


def test_an_order_that_comes_while_another_is_taken_in_is_not_undone() -> None:
    """The thread that makes the service had read the one before, and put it in the later one's place."""
    first = any_order().serving.limits.replace(queue=1)
    later = first.replace(queue=2)
    before, after = [Route(0, "", "/a")], [Route(0, "", "/b")]
    used: dict[str, Any] = {}

    def watcher_takes(limits: Any) -> None:
        used["watcher"] = limits
        if limits is first:
            instance._limit(later)  # on the control thread

    def make_peeker(routes: Any) -> Any:
        if routes == before:
            instance._reroute(Reroute(routes=after, is_first=True, is_last=True))
        return routes

    service = SimpleNamespace(set_limits=lambda limits: used.update(service=limits), peeker=None)
    instance: Any = object.__new__(Instance)
    instance._service, instance._new_routes = service, []
    instance._watcher = SimpleNamespace(set_limits=watcher_takes)
    instance._admission = SimpleNamespace(set_limits=lambda limits: used.update(admission=limits))
    instance._make_peeker = make_peeker

    instance._limit(first)
    instance._reroute(Reroute(routes=before, is_first=True, is_last=True))

    assert used == {"watcher": later, "admission": later, "service": later}
    assert service.peeker == after
