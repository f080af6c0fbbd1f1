"""A change of the table while it serves: what is new is loaded beside it, then all of it is taken up at once, or nothing is.

A mount whose app must be loaded for its new settings gets a deployment of its own, which nobody can reach until the switch. So a change is
what is added and what is gone, and both are deployments. The others pass from one table to the next as they are: with their instances,
generations, connections and counters. If their settings differ, they are told so at the switch; `configuration.costs` says which can. With
`replace = "stop-first"` a new deployment is loaded only after the switch, when the one before it has gone.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import attrs

from isowsgi.configuration import Config, Mount, costs, partial
from isowsgi.shared.interpreters import MAIN
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.table import Table, grouped


class Unchangeable(Exception):
    """A config cannot be taken up by a worker that serves another one; the text says why, and what to do.

    Args:
        names: of what would have to stay as it is; see `partial.staying`.
    """

    def __init__(self, names: Iterable[str], text: str) -> None:
        super().__init__(text)
        self.names = list(names)


class Problem(NamedTuple):
    """Why a new deployment does not serve."""

    patterns: list[str]
    error: str  # one line
    traceback: str


class Change:
    """The way from one table to the next.

    Args:
        old: the table that serves.
        config: what shall be served.
        board: gives numbers to new mounts.
        make: returns a deployment for the mounts of a group, or for one.

    Attributes:
        new: the table that it leads to.
        fresh: deployments that are only in the new one.
        gone: those that are only in the old one.
        adjusted: those that go on with other settings, and these.

    Raises:
        Unchangeable: not from this table.
        MemoryError: there is no place on the scoreboard.
    """

    def __init__(self, old: Table, config: Config, board: Scoreboard, make: Callable[[Sequence[Mount]], Deployment]) -> None:
        self._old = old
        self._board = board
        self.fresh: list[Deployment] = []
        self._numbers: list[int] = []  # of new mounts
        wanted = grouped(config.mounts)
        homes = {_key(deployment.members): deployment for deployment in old.deployments}
        has_same_status = old.config.status == config.status
        kept = [_kept(homes.get(_key(members)), members, has_same_status) for members in wanted]
        stay = {placed[1] for placed in kept if placed is not None}
        gone = [deployment for deployment in old.deployments if deployment not in stay]
        _check(old, config, gone, [members for members, placed in zip(wanted, kept, strict=True) if placed is None])
        before = {member.pattern: deployment for deployment in gone for member in deployment.members}
        self._before: list[tuple[Deployment, list[Deployment]]] = []  # those that are fresh, and whose place they take
        self._placed: list[tuple[Sequence[Mount], Deployment]] = []
        try:
            for members, placed in zip(wanted, kept, strict=True):
                if placed is not None:
                    self._placed.append(placed)
                else:
                    deployment = make([attrs.evolve(member, number=self._number(member)) for member in members])
                    self._before.append((deployment, [before[member.pattern] for member in members if member.pattern in before]))
                    _carry_over(*self._before[-1])
                    self.fresh.append(deployment)
                    self._placed.append((deployment.members, deployment))
        except BaseException:
            self.forget()
            raise
        self._lead_to(config)
        for deployment in self.fresh:
            deployment.is_prepared = True
        self._has_begun = False

    def _lead_to(self, config: Config) -> None:
        self.new = Table(config, self._placed)
        for deployment in self.fresh:
            deployment.routes, deployment.status = self.new.routes_of(deployment), config.status
        stay = set(self.new.deployments)
        self.gone = [deployment for deployment in self._old.deployments if deployment not in stay]
        self.adjusted = [(members, deployment) for members, deployment in self._placed if tuple(members) != deployment.members]

    def begin(self, now: float) -> None:
        """Load what is new and not lazy; without effect once it has begun."""
        if self._has_begun:
            return
        self._has_begun = True
        following = [deployment for deployment, _ in self.following()]
        for deployment in self.fresh:
            if not deployment.mount.lazy and deployment not in following:
                deployment.start(now)  # without effect on one that the operator has stopped

    def following(self) -> list[tuple[Deployment, list[Deployment]]]:
        """Return what must not be loaded beside those before it, and these: it is loaded when they have gone, after the switch."""
        return [each for each in self._before if each[1] and any(one.mount.replace == "stop-first" for one in (each[0], *each[1]))]

    def narrow(self, names: Iterable[str]) -> list[Deployment]:
        """Let some mounts stay as they are, with all that share an instance with them; the rest is changed.

        Args:
            names: see `partial.staying`.

        Returns:
            deployments that are not wanted any more.
        """
        stay = partial.staying(self.new.config, self._old.config, names)
        config = partial.leave_out(self.new.config, self._old.config, stay)
        stays = {_key(deployment.members): deployment for deployment in self._old.deployments if _is_any(deployment.members, stay)}
        comes = {_key(members): (members, deployment) for members, deployment in self._placed if not _is_any(members, stay)}
        keys = map(_key, grouped(config.mounts))
        self._placed = [(stays[key].members, stays[key]) if key in stays else comes[key] for key in keys]
        dropped = [deployment for deployment in self.fresh if _is_any(deployment.members, stay)]
        self.fresh = [deployment for deployment in self.fresh if deployment not in dropped]
        self._before = [each for each in self._before if each[0] in self.fresh]
        self._lead_to(config)
        return dropped

    def problems(self) -> list[Problem]:
        """Return what could not be loaded so far."""
        found = []
        for deployment in self.fresh:
            if deployment.is_faulty:
                continue  # nothing more is wanted of it
            incident = deployment.reports.incidents.last_boot
            if incident is not None:
                found.append(Problem(_patterns([deployment]), f"{incident.tag}: {incident.error}", incident.details))
            elif deployment.backoff.retry_at is not None:
                found.append(Problem(_patterns([deployment]), f"{deployment.name}: was not loaded in time; see the error log", ""))
        return found

    def is_ready(self) -> bool:
        """Whether all that is new serves, or need not be loaded yet."""
        following = [deployment for deployment, _ in self.following()]
        return self._has_begun and all(deployment in following or _is_ready(deployment) for deployment in self.fresh)

    def catch_up(self, now: float) -> None:
        """Stop or start what the operator has stopped or started since the change began."""
        for deployment, before in self._before:
            was_stopped = any(each.is_stopped for each in before)
            if was_stopped and not deployment.is_stopped:
                deployment.halt(now)
            elif before and deployment.is_stopped and not was_stopped:
                deployment.resume(now)

    def forget(self) -> None:
        """Give back the numbers of what is new: it will never serve."""
        for number in self._numbers:
            self._board.free_mount(number)
        self._numbers = []

    @property
    def added(self) -> list[str]:
        """Return the patterns that are new."""
        return _patterns(self.fresh, without=self.gone)

    @property
    def changed(self) -> list[str]:
        """Return the patterns whose mounts were made again."""
        return [pattern for pattern in _patterns(self.fresh) if pattern not in self.added]

    @property
    def removed(self) -> list[str]:
        """Return the patterns that are no more."""
        return _patterns(self.gone, without=self.fresh)

    def _number(self, mount: Mount) -> int:
        number = self._board.add_mount(mount.pattern)
        self._numbers.append(number)
        return number


def _kept(deployment: Deployment | None, members: Sequence[Mount], has_same_status: bool) -> tuple[Sequence[Mount], Deployment] | None:
    """Return what a deployment's mounts become if it can be in both tables, and the deployment; else None.

    Args:
        has_same_status: whether the same may see the status page, which is told that when it is loaded.
    """
    if deployment is None or (not has_same_status and any(member.app.is_status for member in members)):
        return None
    if len(members) == 1 and members[0] is deployment.mount:  # nearly all of a table
        return deployment.members, deployment
    pairs = _pairs(deployment, members)
    if all(before is after or costs.is_in_place(before, after) for before, after in pairs):
        return [_as_numbered(before, after) for before, after in pairs], deployment
    return None


def _pairs(deployment: Deployment, members: Sequence[Mount]) -> list[tuple[Mount, Mount]]:
    """Return each of a deployment's mounts, in its order, which its instances know, and what a config says of the same."""
    said = {member.pattern: member for member in members}
    return [(member, said[member.pattern]) for member in deployment.members]


def _key(members: Sequence[Mount]) -> tuple[str, ...]:
    """Return what tells those that share an instance from others in the same config; their order in the file is nothing to them."""
    return (members[0].pattern,) if len(members) == 1 else tuple(sorted(member.pattern for member in members))


def _as_numbered(before: Mount, after: Mount) -> Mount:
    """Return what a mount becomes, with the number that it has; the same object if nothing differs, which is nearly all of a table."""
    return before if before is after or (before == after and before.file == after.file) else attrs.evolve(after, number=before.number)


def _is_any(members: Sequence[Mount], patterns: frozenset[str]) -> bool:
    return any(member.pattern in patterns for member in members)


def _patterns(deployments: Sequence[Deployment], without: Sequence[Deployment] = ()) -> list[str]:
    others = {member.pattern for deployment in without for member in deployment.members}
    return [member.pattern for deployment in deployments for member in deployment.members if member.pattern not in others]


def _is_ready(deployment: Deployment) -> bool:
    if deployment.is_stopped or deployment.is_quarantined or deployment.is_faulty:
        return True
    if deployment.mount.lazy and deployment.is_asleep():
        return True
    return deployment.is_serving() and deployment.has_arrived(0)


def _carry_over(deployment: Deployment, before: list[Deployment]) -> None:
    """Let a deployment go on where others with the same mounts ended."""
    if before:
        deployment.generation = max(each.generation for each in before)
        deployment.told = max(each.reloads for each in before), max(each.stuck for each in before)
        deployment.reloads, deployment.stuck = deployment.told[0] + 1, deployment.told[1]
        for each in before:
            deployment.reports.incidents.take_over(each.reports.incidents, [member.pattern for member in deployment.members])
        deployment.is_stopped = any(each.is_stopped for each in before)
        deployment.is_quarantined = deployment.is_quarantined or any(each.is_quarantined for each in before)


def _check(old: Table, config: Config, gone: Sequence[Deployment], new: Sequence[Sequence[Mount]]) -> None:
    """Refuse what only a new worker can do.

    Args:
        gone: what is not in the next table.
        new: the mounts of what is not in the old one.

    Raises:
        Unchangeable: that is among it.
    """
    if attrs.evolve(old.config.control, watch=config.control.watch) != config.control:
        text = "[control] differs: a running gunicorn keeps its control sockets; send SIGHUP to gunicorn to apply this file"
        raise Unchangeable([partial.CONTROL], text)
    if old.config.log != config.log:
        text = "[log] differs: a running gunicorn keeps the form of its log; send SIGHUP to gunicorn to apply this file"
        raise Unchangeable([partial.LOG], text)
    for deployment in gone:
        if deployment.siting.isolation == MAIN:
            text = "runs in the main interpreter, which only a new worker can reload; send SIGHUP to gunicorn to apply this file"
            raise Unchangeable(_patterns([deployment]), f"{deployment.name}: {text}")
    for each in new:
        if each[0].isolation == MAIN:
            text = "only a new worker can load an app in the main interpreter; send SIGHUP to gunicorn to apply this file"
            raise Unchangeable(_key(each), f"{each[0].pattern}: {text}")
        if each[0].user:
            text = "what runs as another user must be read from the config file by root: send SIGHUP to gunicorn to apply this file"
            raise Unchangeable(_key(each), f"{each[0].pattern}: {text}")
