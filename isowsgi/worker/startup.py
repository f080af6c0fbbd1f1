"""The table that the log gets once all mounts are loaded: what serves where, how long it took to load, and what it may have cost."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from isowsgi.configuration import Config, Mount
from isowsgi.instances.bootorder import BootOrders
from isowsgi.shared.interpreters import PROCESS
from isowsgi.worker.deployment import Deployment, facts_of
from isowsgi.worker.processmemory import rss_mib
from isowsgi.worker.supervisor import Supervisor

# From so many processes on a fork server saves memory: it takes some 20 MiB itself (docs/explanation/processes.md).
_WORTH_A_SERVER = 3

# No line is folded: a log is read in a window that scrolls, or in a file.
_WIDTH = 1000


class Row(NamedTuple):
    """What the table says of one mount; the names are its headings."""

    mount: str
    app: str
    state: str
    isolation: str
    why: str
    threads: str
    boot: str
    memory: str


def report(supervisor: Supervisor, orders: BootOrders, log: Any) -> None:
    """Log the table, from a thread: drawing it takes a tenth of a second, mostly for the import of rich, and requests would wait."""
    grown_mib = max(rss_mib() - supervisor.rss_at_start, 0)
    table = rows(supervisor.deployments, orders, grown_mib)
    in_processes = [deployment.mount for deployment in supervisor.deployments if deployment.siting.isolation == PROCESS]
    hint = advice(in_processes, supervisor.table.config)
    threading.Thread(target=_write, args=(table, grown_mib, hint, log), name="isowsgi-startup", daemon=True).start()


def advice(mounts: Sequence[Mount], config: Config) -> str:
    """Return what would save memory, for a config without a fork server; "" if nothing.

    Args:
        mounts: those that have processes, one of each group.
    """
    count = sum(mount.instances for mount in mounts if not (mount.preload or mount.copies == "fork"))
    if config.limits.fork_server or count < _WORTH_A_SERVER:
        return ""
    return (
        f"{count} processes of mounts were started one by one; with `fork_server = true` in [worker] they would share some 10 MiB each and"
        " start faster, but also their memory layout: see 'Processes from a fork server' in the docs"
    )


def rows(deployments: list[Deployment], orders: BootOrders, grown_mib: int) -> list[Row]:
    """Return a row for each mount.

    Args:
        grown_mib: by how much the worker has grown since before the first mount was loaded. Nobody can say whose memory is whose, as
            interpreters of a process share its allocator and boot side by side; so it is shared out by the number of Python objects.
    """
    objects = [sum(instance.objects_at_boot for instance in deployment.slots.serving()) for deployment in deployments]
    return [
        _row(deployment, member, orders, grown_mib * count / (sum(objects) or 1))
        for deployment, count in zip(deployments, objects, strict=True)
        for member in deployment.members
    ]


def _row(deployment: Deployment, mount: Mount, orders: BootOrders, mib: float) -> Row:
    serving = deployment.slots.serving()
    threads = str(orders.threads_of(mount))
    facts = facts_of(deployment, mount)
    state, isolation = deployment.state(), deployment.siting.isolation if not mount.redirect else "-"
    return Row(
        mount=mount.pattern,
        app=facts["app"],
        state="lazy" if state == "asleep" else state,
        isolation=isolation if mount.group is None else f"{isolation}, group {mount.group}",
        why=deployment.siting.why(),
        threads=threads if mount.instances == 1 else f"{mount.instances} x {threads}",
        boot=f"{max(instance.boot_s for instance in serving):.2f} s" if serving else "-",
        memory=f"{mib:.0f} MiB" if serving else "-",
    )


def _write(table: list[Row], grown_mib: int, hint: str, log: Any) -> None:
    try:
        lines = draw(table)
    except Exception as exc:  # rich cannot be imported just now: an app has all descriptors
        log.warning("the table of mounts cannot be drawn: %s: %s; `isowsgi status` shows it", type(exc).__name__, exc)
        return
    for line in lines:
        log.info("%s", line)
    log.info(
        "the worker grew by %d MiB while the mounts were loaded; 'memory' is each mount's share of that, by its Python objects", grown_mib
    )
    if hint:
        log.info("%s", hint)


def draw(table: list[Row]) -> list[str]:
    """Return the table as lines of equal columns."""
    # Late: a worker needs it once.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in Row._fields:
        drawn.add_column(name, no_wrap=True, justify="right" if name in ("threads", "boot", "memory") else "left")
    for row in table:
        drawn.add_row(*(Text(_printable(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, width=_WIDTH, color_system=None, legacy_windows=False).print(drawn)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _printable(text: str) -> str:
    """Return a text in one line: the name of a mount or an error may hold what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)
