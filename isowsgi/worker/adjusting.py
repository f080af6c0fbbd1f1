"""Settings that a deployment takes up while its app keeps running; `configuration.costs` says which.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from isowsgi.configuration import Mount
from isowsgi.instances.bootorder import limits_of
from isowsgi.instances.lifecycle import ENDS
from isowsgi.worker.deployment import Deployment


def adjust(deployment: Deployment, members: Sequence[Mount]) -> None:
    """Give a deployment other settings.

    Args:
        members: the same mounts, with the same numbers.
    """
    before, deployment.members, deployment.mount = deployment.mount, tuple(members), members[0]
    deployment.owes_limits |= limits_of(before) != limits_of(deployment.mount)
    if before.max_memory != deployment.mount.max_memory:
        deployment.upkeep.note_memory_limit()
    if before.touch != deployment.mount.touch:
        deployment.upkeep.note_touched()
    if (before.max_requests, before.max_requests_jitter) != (deployment.mount.max_requests, deployment.mount.max_requests_jitter):
        for instance in deployment.slots.serving():
            if deployment.quotas.get(instance) != 0:  # else it has come to its old one, and is being replaced for that
                deployment.upkeep.set_quota(instance)
    pay(deployment)


def pay(deployment: Deployment) -> None:
    """Tell a deployment's instances their limits, if that is owed."""
    if deployment.owes_limits:
        order = limits_of(deployment.mount)
        alive = [instance for instance in deployment.slots.all() if instance.state not in ENDS]
        told = [instance.tell(order) for instance in alive]
        deployment.owes_limits = not all(told)  # one reads nothing just now; again later
