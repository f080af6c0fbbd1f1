"""The table: which mounts are served by which deployments. A value: a change makes another one, see `change`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from isowsgi.configuration import Config, Mount
from isowsgi.instances.bootorder import own_routes
from isowsgi.shared.routing import Route, Router
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.tenants import Template


class Table:
    """What one worker serves.

    Args:
        config: what it was made for.
        placed: the mounts of the config, in its order, those of a group together, each with the number that it has in this worker; and
            the deployment that serves them.

    Attributes:
        mounts: in the config's order, each with its deployment; those of a group have the same one.
        templates: those of the deployments that stand for their tenants.
        router: by the mounts' numbers.
        special: the mounts of which not every request goes to an instance of theirs, by their numbers: redirects, templates of tenants,
            and those that are for https only.
    """

    def __init__(self, config: Config, placed: Sequence[tuple[Sequence[Mount], Deployment]]) -> None:
        self.config = config
        self.deployments = [deployment for _, deployment in placed]
        self.templates = [deployment for deployment in self.deployments if isinstance(deployment, Template)]
        by_pattern = {member.pattern: (member, deployment) for members, deployment in placed for member in members}
        self.mounts = [by_pattern[mount.pattern] for mount in config.mounts]
        self.router = Router(own_routes(mount for mount, _ in self.mounts))
        self.special = {mount.number: mount for mount, _ in self.mounts if mount.redirect or mount.max_live or mount.https_only}
        self._deployment_of = {mount.number: deployment for mount, deployment in self.mounts}

    @property
    def stall_s(self) -> float:
        """Return how long a client may take nothing of what is sent to it, whatever it asks for; each mount has its limit, 0 is none."""
        return max((mount.send_timeout or math.inf for mount in self.config.mounts), default=math.inf)

    def routes_of(self, deployment: Deployment) -> list[Route]:
        """Return the routes that decide which requests are a deployment's, see `Router.rivals`."""
        return list(dict.fromkeys(route for member in deployment.members for route in self.router.rivals(member.number)))

    def deployment_of(self, number: int) -> Deployment:
        return self._deployment_of[number]


def grouped(mounts: Iterable[Mount]) -> list[list[Mount]]:
    """Return mounts, in a list those that share an instance."""
    groups: dict[tuple[str, str], list[Mount]] = {}
    for mount in mounts:
        groups.setdefault(mount.sharing, []).append(mount)
    return list(groups.values())
