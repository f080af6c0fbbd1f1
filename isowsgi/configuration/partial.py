"""A config that is taken up in part: some of its mounts stay as they are in the one before it."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from isowsgi.configuration.values import Config, numbered

# What stands for tables among the names of what stays, as `differences.Difference` has it.
CONTROL = "[control]"
LOG = "[log]"
TLS = "[[tls]]"


def staying(new: Config, old: Config, names: Iterable[str]) -> frozenset[str]:
    """Return what stays if some names do: mounts that share an instance, in either config, stay together.

    Args:
        names: patterns, `CONTROL`, `LOG` and `TLS`; those that are in neither config are ignored.
    """
    wanted = set(names)
    if not wanted:
        return frozenset()
    groups: dict[tuple[str, str], set[str]] = {}
    for mount in (*new.mounts, *old.mounts):
        groups.setdefault(mount.sharing, set()).add(mount.pattern)
    stay = wanted & {CONTROL, LOG, TLS, *(pattern for patterns in groups.values() for pattern in patterns)}
    before = -1
    while before < len(stay):  # a mount may have moved from one group to another
        before = len(stay)
        for patterns in groups.values():
            if not patterns.isdisjoint(stay):
                stay |= patterns
    return frozenset(stay)


def leave_out(new: Config, old: Config, stay: frozenset[str]) -> Config:
    """Return a config in which what stays is as it was: a mount that was not there before is not there.

    Args:
        stay: see `staying`.
    """
    if not stay:
        return new
    before = {mount.pattern: mount for mount in old.mounts}
    mounts = [before.get(mount.pattern) if mount.pattern in stay else mount for mount in new.mounts]
    there = {mount.pattern for mount in new.mounts}
    mounts += [mount for mount in old.mounts if mount.pattern in stay and mount.pattern not in there]
    kept = [mount for mount in mounts if mount is not None]
    control, log = old.control if CONTROL in stay else new.control, old.log if LOG in stay else new.log
    tls = old.tls if TLS in stay else new.tls
    return attrs.evolve(new, control=control, log=log, tls=tls, mounts=numbered(kept))
