"""Tenants: the hosts of a wildcard, each with an instance of its own; what is a tenant's name, and what its mount becomes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import attrs

from isowsgi.configuration.values import Mount
from isowsgi.shared.routing import WILDCARD

# What a tenant may be called: a label as host names have it (RFC 1123 section 2.1), which no path can take for more than one name.
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

PLACE = "{1}"  # stands for the label in a template's values

# Keys in whose values it may stand.
PLACED = ("app", "env", "pythonpath", "touch", "user", "working_directory", "sandbox", "exists")

# How many that leave, beside those that live, may have instances that still answer requests, before newcomers wait for their end.
# Of one template in one worker; their threads have rows on the scoreboard, so what a config file may ask for depends on it.
MOST_LEAVING = 4


def tenant_of(template: Mount, label: str, number: int) -> Mount:
    """Return a tenant's mount.

    Args:
        label: checked by `LABEL`.
        number: that it has in this worker.
    """
    host, sandbox = host_of(template, label), template.sandbox
    return attrs.evolve(
        template,
        number=number,
        pattern=host + template.pattern.removeprefix(template.host),
        host=host,
        app=attrs.evolve(template.app, target=template.app.target.replace(PLACE, label)),
        pythonpath=tuple(folder.replace(PLACE, label) for folder in template.pythonpath),
        env={name: value.replace(PLACE, label) for name, value in template.env.items()},
        touch=template.touch and template.touch.replace(PLACE, label),
        user=template.user.replace(PLACE, label),
        working_directory=template.working_directory and template.working_directory.replace(PLACE, label),
        sandbox=sandbox and {word: tuple(path.replace(PLACE, label) for path in paths) for word, paths in sandbox.items()},
        exists=None,
        max_live=0,
    )


def label_of(template: Mount, pattern: str) -> str | None:
    """Return the label of the tenant that would have a pattern; None: it would be none of this template's."""
    label, _, rest = pattern.partition(".")
    return label if rest == template.pattern.removeprefix(WILDCARD) and LABEL.fullmatch(label) else None


def host_of(template: Mount, label: str) -> str:
    return f"{label}.{template.host.removeprefix(WILDCARD)}"


def is_known(template: Mount, label: str) -> bool:
    """Whether there is a tenant with a label.

    Raises:
        OSError: that cannot be found out just now; the file system is away.
    """
    if not LABEL.fullmatch(label):
        return False
    if template.exists is not None:
        try:
            os.stat(template.exists.replace(PLACE, label))
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def example(template: Mount) -> Mount:
    """Return the mount of some tenant, under its template's pattern: one that exists, if any does."""
    label = next(_labels(template.exists), "tenant") if template.exists is not None else "tenant"
    return attrs.evolve(tenant_of(template, label, template.number), pattern=template.pattern)


def _labels(exists: str) -> Iterator[str]:
    """Yield the tenants of a template."""
    folder, start = os.path.split(exists[: exists.index(PLACE)])
    end = exists[exists.index(PLACE) + len(PLACE) :].partition(os.sep)[0]
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError:
        return
    for name in names:
        label = name[len(start) : len(name) - len(end)]
        if LABEL.fullmatch(label) and name == start + label + end.replace(PLACE, label) and os.path.exists(exists.replace(PLACE, label)):
            yield label


def folder_of(exists: str) -> str:
    """Return the folder in which the tenants of a template have what `exists` names."""
    return os.path.dirname(exists[: exists.index(PLACE)]) or os.sep


def has_own_code(template: Mount) -> bool:
    """Whether the tenants' code may differ, and not only what it is told by its environment."""
    return PLACE in template.app.target or any(PLACE in folder for folder in template.pythonpath)
