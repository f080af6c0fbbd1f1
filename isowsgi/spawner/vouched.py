"""What the spawner starts: the mounts with a user, as root has read them from the config file. No word of a worker changes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from isowsgi.configuration import Config, Mount, accounts, tenants
from isowsgi.configuration.accounts import Account
from isowsgi.configuration.faults import Fault
from isowsgi.configuration.walls import with_user
from isowsgi.instances.bootorder import BootOrders, name_of
from isowsgi.shared.interpreters import PROCESS
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.spawning import Start


class NotVouchedFor(Exception):
    """What is asked for is not in the config file as it was read; the text says so, and what to do."""


class Charge(NamedTuple):
    """One mount with a user, or the mounts of a group.

    Attributes:
        account: that they run as; None: there is none any more, see `fault`.
        most: processes at a time.
        template: of which these are one tenant; "": of none.
        most_of_template: processes of all its tenants.
    """

    members: Mapping[str, Mount]  # by pattern
    account: Account | None
    fault: str
    most: int
    template: str = ""
    most_of_template: int = 0


# How many processes a mount may have, by its instances: while they are replaced twice as many, more if some are slow to end. It keeps a
# worker that was taken over from filling the machine.
_MOST_GENERATIONS = 4
_MOST_BESIDE = 4


class Vouched:
    """All of them, by name.

    Args:
        config: as root has read it.
        orders: write boot orders for this worker.
    """

    def __init__(self, config: Config, orders: BootOrders) -> None:
        self._orders = orders
        found: dict[str, dict[str, Mount]] = {}
        owned = with_user(config.mounts)
        for mount in owned:
            if not mount.max_live:
                found.setdefault(name_of(mount), {})[mount.pattern] = mount
        self._templates = [mount for mount in owned if mount.max_live]
        self._patterns = frozenset(mount.pattern for mount in config.mounts)  # none of a tenant's: such a mount comes before its template
        self._charges = {name: _charge(members) for name, members in found.items()}

    def charge(self, name: str) -> Charge:
        """Return what a worker means.

        Raises:
            NotVouchedFor: nothing that has a user.
            OSError: whether there is such a tenant cannot be found out just now.
        """
        charge = self._charges.get(name) or self._tenant(name)
        if charge is None:
            text = "is not among the mounts with a user that gunicorn's master has read from the config file; send it SIGHUP"
            raise NotVouchedFor(f"{name!r} {text}")
        return charge

    def _tenant(self, name: str) -> Charge | None:
        """Return what is started for a tenant, by a fresh look, as tenants and their users come and go. None: it is no tenant."""
        for template in self._templates if name not in self._patterns else ():
            label = tenants.label_of(template, name)
            if label is not None and tenants.is_known(template, label):
                charge = _charge({name: tenants.tenant_of(template, label, template.number)})
                most = (template.max_live + tenants.MOST_LEAVING) * charge.most
                return charge._replace(template=template.pattern, most_of_template=most)
        return None

    def order(self, start: Start) -> BootOrder:
        """Return the boot order for a process; what it runs and where is the config file's word, its place is the worker's.

        The descriptors in it are places in the packet.

        Raises:
            NotVouchedFor: see above.
        """
        known = self.charge(start.name).members
        if sorted(pattern for pattern, *_ in start.members) != sorted(known):
            raise NotVouchedFor(f"the mounts of {start.name!r} are others in the config file than in this worker; send gunicorn SIGHUP")
        members = [known[pattern] for pattern, *_ in start.members]
        order = self._orders.write(
            members, PROCESS, start.slot, start.generation, start.first_row, has_time=start.has_time, routes=start.routes
        )
        said = zip(order.members, start.members, strict=True)
        return order.replace(
            members=[member.replace(mount=number, warmup=warmup) for member, (_, number, warmup) in said],
            serving=order.serving.replace(limits=start.limits),
            fds=start.fds,
            log_files={path: place for path, place in start.log_files.items() if path in order.log_files},
        )


def _charge(members: Mapping[str, Mount]) -> Charge:
    mount = next(iter(members.values()))
    try:
        account, fault = accounts.find(mount.user), ""
    except Fault as exc:  # removed since the config file was read
        account, fault = None, str(exc)
    return Charge(members, account, fault, mount.instances * _MOST_GENERATIONS + _MOST_BESIDE)
