"""`isowsgi stacks` in a worker: has the instances of a mount tell where their threads are, and gathers it.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import time

from isowsgi.instances.lifecycle import ENDS
from isowsgi.shared import messages
from isowsgi.shared.controlmessages import InstanceStacks, MountStacks
from isowsgi.shared.messages import Stacks
from isowsgi.worker.control.server import Errand
from isowsgi.worker.control.viewing import instance_facts
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.slots import Instance

# How long an instance has for telling its stacks. Its control thread needs milliseconds; one that C code keeps from running needs more.
STACKS_S = 1.0

# What an instance may have told of its stacks before the rest is left out.
_MAX_STACKS_CHARS = 1024 * 1024


class StackTraces:
    """One worker's."""

    def __init__(self) -> None:
        self._asked = 0
        self._heard: dict[int, dict[Instance, list[str]]] = {}  # by number of the question
        self._complete: dict[int, set[Instance]] = {}

    def tell(self, deployment: Deployment) -> Errand:
        """Return the errand of a command."""
        instances = [instance for instance in deployment.slots.all() if instance.state not in ENDS]
        self._asked += 1
        ask = self._asked
        heard = self._heard[ask] = {}
        complete = self._complete[ask] = set()
        now = time.monotonic()
        deadline = now + STACKS_S
        try:
            for instance in instances:
                instance.tell(messages.TellStacks(ask=ask))
            while now < deadline and len(complete) < len(instances):
                now = yield None
        finally:
            del self._heard[ask], self._complete[ask]
        return MountStacks(
            instances=[_stacks_of(instance, "".join(heard.get(instance, [])), instance in complete, now) for instance in instances]
        )

    def hear(self, instance: Instance, report: Stacks) -> None:
        """Take in a part of an instance's stacks."""
        heard = self._heard.get(report.ask)
        if heard is None:
            return  # its asker no longer waits
        parts = heard.setdefault(instance, [])
        if sum(map(len, parts)) < _MAX_STACKS_CHARS:
            parts.append(report.text)
        if report.is_last:
            self._complete[report.ask].add(instance)


def _stacks_of(instance: Instance, text: str, is_complete: bool, now: float) -> InstanceStacks:
    problem = (
        f"no answer within {STACKS_S:g} s: C code holds the GIL of this interpreter, so no Python code runs in it and its stacks "
        "cannot be read"
    )
    return InstanceStacks(**instance_facts(instance, now), stacks=text, problem="" if is_complete else problem)
