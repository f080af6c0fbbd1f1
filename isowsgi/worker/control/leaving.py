"""A mount that will be stopped, but is served for a while yet: balancers see that it is not ready, and send its clients elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from isowsgi.shared.controlmessages import Refusal
from isowsgi.worker.deployment import Deployment


def leave(deployment: Deployment, seconds: float, publish: Callable[[], object]) -> Generator[bool | None, float, None]:
    """Keep a mount in service; return once it shall be stopped. It is ready again if the generator is closed before.

    Args:
        publish: has all readers know the mount's state.

    Raises:
        Refusal: it was started again meanwhile, or is in no table any more.
    """
    if seconds <= 0:
        return
    set_leaving(deployment, True, publish)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until and not deployment.is_stopped:
            if deployment.is_ending:
                raise Refusal("outvoted", f"{deployment.name} was replaced by a table that was applied meanwhile")
            if not deployment.is_leaving:
                raise Refusal("started", f"{deployment.name} was started meanwhile")
            yield None
    finally:
        set_leaving(deployment, False, publish)


def set_leaving(deployment: Deployment, is_leaving: bool, publish: Callable[[], object]) -> bool:
    """Return whether it was leaving before."""
    was_leaving, deployment.is_leaving = deployment.is_leaving, is_leaving
    if was_leaving != is_leaving:
        publish()
    return was_leaving
