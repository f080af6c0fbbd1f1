"""What an operator asks to see of a worker: the state of its mounts, what went wrong in them, and the table that it serves.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from isowsgi.configuration import Mount, differences, stored
from isowsgi.configuration.values import spellings_of
from isowsgi.shared import controlmessages, interpreters
from isowsgi.shared.certificates import Told
from isowsgi.shared.conffile import ConfFile
from isowsgi.shared.controlmessages import (
    CertificateStatus,
    GroupUse,
    GunicornFile,
    InFlight,
    InstanceStatus,
    LastError,
    MountCounts,
    MountErrors,
    MountStatus,
    MountTable,
    ServedTable,
    WorkerErrors,
    WorkerStatus,
)
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.counts import counts_of
from isowsgi.worker.control.finding import find_deployment
from isowsgi.worker.control.server import AT_ONCE, Errand
from isowsgi.worker.deployment import Deployment, facts_of
from isowsgi.worker.meter import memory_of, size_of
from isowsgi.worker.processmemory import rss_mib
from isowsgi.worker.slots import Instance
from isowsgi.worker.supervisor import Supervisor
from isowsgi.worker.tenants import with_tenants


class Views:
    """Tells what one worker knows of its mounts; changes nothing.

    Args:
        supervisor: whose mounts they are.
        applying: knows the certificates that were read with the table.
        conf_file: of gunicorn's settings, as they were read.
        board: the worker's.
    """

    def __init__(self, supervisor: Supervisor, applying: Applying, conf_file: ConfFile | None, board: Scoreboard | None) -> None:
        self._supervisor = supervisor
        self._applying = applying
        self._conf_file = conf_file
        self._board = board
        self._began_at = time.time()

    def status(self, request: controlmessages.Status) -> Errand:
        deployments = with_tenants(
            self._supervisor.deployments if request.mount is None else [find_deployment(self._supervisor, request.mount)]
        )
        wanted = None if request.mount is None else spellings_of(request.mount)
        now = time.monotonic()
        counts = {} if self._board is None else counts_of(self._board)
        mounts = []
        for deployment in deployments:
            for member in deployment.members:
                if wanted is None or member.pattern in wanted or deployment is not deployments[0]:
                    yield AT_ONCE
                    mounts.append(self._status_of(deployment, member, now, counts.get(member.pattern)))
        return WorkerStatus(
            at=now,
            python=interpreters.version_text(),
            up_s=round(time.time() - self._began_at, 1),
            rss_mib=rss_mib(),
            certificates=[*map(_certificate_status, self._supervisor.certificates())],
            mounts=mounts,
        )

    def errors(self, request: controlmessages.Errors) -> Errand:
        deployment = find_deployment(self._supervisor, request.mount)
        incidents = deployment.reports.incidents
        patterns = {member.pattern for member in deployment.members}
        pattern = next((each for each in spellings_of(request.mount) if each in patterns), deployment.mount.pattern)
        if request.changed_since:
            groups = incidents.summary_of(pattern, request.changed_since)
            return MountErrors(mount=pattern, boot=None, requests=[], groups=groups)
        return MountErrors(
            mount=pattern, boot=incidents.last_boot, requests=incidents.of_requests(pattern), groups=incidents.groups_of(pattern)
        )
        yield None  # never reached: makes this function a generator, as the others are

    def all_errors(self, request: controlmessages.AllErrors) -> Errand:
        mounts = []
        tenants = [(each.mount, each) for each in self._supervisor.live.tenants()]  # whose requests' errors their template has
        for mount, deployment in [*self._supervisor.table.mounts, *tenants]:
            yield AT_ONCE
            incidents = deployment.reports.incidents
            groups = [] if incidents.above is not None else incidents.summary_of(mount.pattern, request.changed_since)
            boot = incidents.last_boot and incidents.last_boot.replace(details="")
            if groups or boot:
                mounts.append(MountErrors(mount=mount.pattern, boot=boot, requests=[], groups=groups))
        return WorkerErrors(mounts=mounts)

    def table(self, request: controlmessages.Table) -> Errand:
        salt = secrets.token_hex(16)
        config = self._supervisor.table.config
        mounts = []
        for mount in config.mounts:
            mounts.append(MountTable(mount=mount.pattern, settings=differences.settings_of(mount, salt)))
            yield AT_ONCE
        tables, facts = differences.tables_of(config, salt), self._applying.tls_facts()
        file = _gunicorn_file(self._conf_file)
        yield AT_ONCE
        return ServedTable(salt=salt, tables=tables, mounts=mounts, gunicorn=file, form=stored.form(), **facts)

    def _status_of(self, deployment: Deployment, mount: Mount, now: float, counts: MountCounts | None) -> MountStatus:
        incident = deployment.reports.incidents.latest(mount.pattern)
        return MountStatus(
            mount=mount.pattern,
            **facts_of(deployment, mount),
            memory_bytes=memory_of(deployment),
            retry_in_s=deployment.backoff.left_s(now),
            instances=[InstanceStatus(**instance_facts(instance, now, mount.number)) for instance in deployment.slots.all()],
            last_error=None if incident is None else LastError(at=incident.at, kind=incident.kind, error=incident.error),
            counts=counts,
        )


def _gunicorn_file(found: ConfFile | None) -> GunicornFile | None:
    return None if found is None else GunicornFile(path=found.path, digest=found.digest)


def _certificate_status(told: Told) -> CertificateStatus:
    return CertificateStatus(hosts=list(told.hosts), path=told.path, expires=told.expires)


def instance_facts(instance: Instance, now: float, mount: int | None = None) -> dict[str, Any]:
    """Return the fields of an `InstanceStatus`."""
    return {
        "tag": instance.tag,
        "generation": instance.generation,
        "state": instance.state.value,
        "isolation": instance.isolation,
        "threads": instance.threads,
        "boot_s": instance.boot_s,
        "requests": instance.requests(mount),
        "in_flight": [InFlight(request=line, for_s=seconds) for line, seconds in instance.in_flight(now)],
        "error": instance.error,
        "memory_bytes": size_of(instance),
        "memory_at_boot_bytes": instance.memory_at_boot if instance.memory_at_boot >= 0 else None,
        "control_group": None if instance.group_use is None else GroupUse(**instance.group_use._asdict()),
    }
