"""Reads the config file that the workers say they serve, and compares it with what they serve."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs

from isowsgi import configuration
from isowsgi.cli import asking, client
from isowsgi.cli.answers import Told, plain
from isowsgi.configuration import partial, stored
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import OTHER_HOSTS, Difference, Summary, differences, summary, text_of
from isowsgi.configuration.walls import OF_GROUPS, need_groups
from isowsgi.shared import conffile, controlmessages, interpreters, workdir
from isowsgi.shared.controlmessages import Error, GunicornFile, ServedTable
from isowsgi.shared.sockets import Place

# What differs, by worker.
Compared = list[tuple[Place, list[Difference]]]

# Differences that are told one by one where they are not what was asked for.
_MOST_HINTS = 5


def read_as_served(config: str | None, answers: Sequence[Told[ServedTable]]) -> configuration.Config:
    """Read the file that is served, by the path that gunicorn has for it: it may lead through a link to another folder than ours does.

    Raises:
        ConfigError: it has faults. Those of included files are in the config.
    """
    path = workdir.absolute(config or "isowsgi.toml")
    for told in answers:
        is_named = config is None and not os.path.exists(path)  # by a pid file alone
        if told.worker is not None and client.is_trusted(told.place) and (is_named or _same_file(told.worker.config, path)):
            path = told.worker.config
    return read(path)


def read(path: str) -> configuration.Config:
    """Read a config file.

    Raises:
        ConfigError: as `read_as_served`.
    """
    return configuration.load(workdir.absolute(path), own_gil_error=interpreters.own_gil_error())


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def compare(answers: Sequence[Told[ServedTable]], wanted: configuration.Config) -> Compared:
    """Return how a config differs from what each worker serves that has answered."""
    return [(told.place, _differences(told.answer, wanted)) for told in answers if not isinstance(told.answer, Error)]


def conf_files(answers: Sequence[Told[ServedTable]]) -> dict[Place, GunicornFile]:
    """Return gunicorn's own settings file as each worker's master has read it, where there is one and the worker is trusted."""
    read = {each.place: each.answer.gunicorn for each in answers if not isinstance(each.answer, Error) and client.is_trusted(each.place)}
    return {place: file for place, file in read.items() if file is not None}


def with_conf_file(answers: Sequence[Told[ServedTable]], by_worker: Compared) -> Compared:
    """Return the differences, and where gunicorn's own settings file has changed since its master has read it, that too."""
    changed = {place: file.path for place, file in conf_files(answers).items() if conffile.digest_of(file.path) not in (None, file.digest)}
    more = {place: [Difference(sign="~", name=path, cost=Cost.SIGHUP)] for place, path in changed.items()}
    return [(place, [*found, *more.get(place, [])]) for place, found in by_worker]


def _differences(served: ServedTable, wanted: configuration.Config) -> list[Difference]:
    running = Summary(tables=served.tables, mounts={mount.mount: mount.settings for mount in served.mounts})
    new = summary(wanted, served.salt)
    # Mounts of files with faults stay as they are.
    faulty = set(map(text_of, wanted.faulty))
    stays = {mount.pattern for mount in wanted.mounts if mount.fault}
    stays |= {name for name, settings in running.mounts.items() if settings.get("file") in faulty}
    mounts = {**new.mounts, **{name: running.mounts[name] for name in stays if name in running.mounts}}
    tables = {"tls": dict(new.tables["tls"])}
    if served.tls == "gunicorn":  # its settings name what other hosts get
        for each in (tables, running.tables):
            each.get("tls", {}).pop(OTHER_HOSTS, None)
    found = differences(running, Summary(tables={**new.tables, **tables}, mounts=mounts))
    if served.tls == "gunicorn" or (served.tls and wanted.tls):
        return found
    return [attrs.evolve(each, cost=Cost.SIGHUP) if each.name == partial.TLS else each for each in found]


def late_limits(answers: Sequence[Told[ServedTable]], wanted: configuration.Config) -> list[str]:
    """Say what `apply` cannot do for the first limits that a mount gets, where workers have given root's rights up: empty for others."""
    if not need_groups(wanted.mounts):
        return []
    grouped = {f"limits.{name}" for name in OF_GROUPS}
    for told in answers:
        if isinstance(told.answer, Error) or any(mount.settings.keys() & grouped for mount in told.answer.mounts):
            continue
        if told.place.owner != 0 and _is_roots(told.place.master):
            return ["limits get control groups at SIGHUP, not by apply: these workers gave root's rights up when no mount had limits"]
    return []


def other_releases(answers: Sequence[Told[ServedTable]]) -> list[str]:
    """Say that workers have other settings or defaults than this command, which no difference shows: empty if none has."""
    if all(isinstance(told.answer, Error) or told.answer.form == stored.form() for told in answers):
        return []
    return ["gunicorn runs another release of isowsgi, whose defaults may differ: restart gunicorn; apply is refused until then"]


def _is_roots(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return any(line.split()[:2] == [b"Uid:", b"0"] for line in file)  # proc_pid_status(5)
    except OSError:
        return False


def hints(config: str | None, places: Sequence[Place]) -> list[str]:
    """Say how the config file differs from what runs, for people who did not ask: empty if it does not, or if that cannot be told."""
    answers = client.ask(places, controlmessages.Table(), asking.TIMEOUT_S)
    if all(isinstance(told.answer, Error) for told in answers):
        return []
    try:
        wanted = read_as_served(config, answers)
    except FileNotFoundError:  # the working directory was deleted
        return []
    except configuration.ConfigError:
        return ["the config file has faults: isowsgi plan"]
    by_worker = compare(answers, wanted)
    found = by_worker[0][1] if by_worker else []
    lines = [f"{plain(each.name)}: {_HINTS[each.sign]}" for each in found[:_MOST_HINTS]]
    if len(found) > _MOST_HINTS:
        lines.append(f"{len(found) - _MOST_HINTS} more differences: isowsgi plan")
    if wanted.faults:
        lines.append("an included config file has faults: isowsgi plan")
    return lines


_HINTS = {
    "+": "is in the config file, and not applied yet: isowsgi apply",
    "-": "serves, and is in the config file no more: isowsgi apply",
    "~": "has other settings in the config file, not applied yet: isowsgi plan",
}
