"""Tenants: the hosts of a wildcard, each with an instance of its own; what is a tenant's name, and what its mount becomes."""

from __future__ import annotations

import glob
import os
import re

import attrs

from isowsgi.configuration.values import Mount
from isowsgi.shared.routing import WILDCARD

# What a tenant may be called: a label as host names have it (RFC 1123 section 2.1), which no path can take for more than one name.
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

PLACE = "{1}"  # stands for the label in a template's values


def tenant_of(template: Mount, label: str, number: int) -> Mount:
    """Return a tenant's mount.

    Args:
        label: checked by `LABEL`.
        number: that it has in this worker.
    """
    host = f"{label}.{template.host.removeprefix(WILDCARD)}"
    return attrs.evolve(
        template,
        number=number,
        pattern=host + template.pattern.removeprefix(template.host),
        host=host,
        app=attrs.evolve(template.app, target=template.app.target.replace(PLACE, label)),
        pythonpath=tuple(folder.replace(PLACE, label) for folder in template.pythonpath),
        env={name: value.replace(PLACE, label) for name, value in template.env.items()},
        touch=template.touch and template.touch.replace(PLACE, label),
        exists=None,
        max_live=0,
    )


def is_known(template: Mount, label: str) -> bool:
    """Whether there is a tenant with a label."""
    if not LABEL.fullmatch(label):
        return False
    return template.exists is None or os.path.exists(template.exists.replace(PLACE, label))


def example(template: Mount) -> Mount:
    """Return the mount of some tenant, under its template's pattern: one that exists, if any does."""
    paths = sorted(glob.glob(template.exists.replace(PLACE, "*"))) if template.exists is not None else []
    labels = [label for path in paths if (label := _label_in(template.exists or "", path)) is not None]
    return attrs.evolve(tenant_of(template, next(iter(labels), "tenant"), template.number), pattern=template.pattern)


def _label_in(written: str, path: str) -> str | None:
    """Return the label that a path has where another one has its place."""
    start, end = written.index(PLACE), len(written) - written.index(PLACE) - len(PLACE)
    label = path[start : len(path) - end].partition(os.sep)[0]
    return label if LABEL.fullmatch(label) and written.replace(PLACE, label) == path else None


def has_own_code(template: Mount) -> bool:
    """Whether the tenants' code may differ, and not only what it is told by its environment."""
    return PLACE in template.app.target or any(PLACE in folder for folder in template.pythonpath)
