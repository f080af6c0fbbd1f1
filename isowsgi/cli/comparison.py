"""Reads the config file that the workers say they serve, and compares it with what they serve."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from isowsgi import configuration
from isowsgi.cli import asking, client
from isowsgi.cli.answers import Told, plain
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import Difference, Summary, differences, summary, text_of
from isowsgi.shared import certificates, conffile, controlmessages, interpreters, regularfiles, workdir
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
    return configuration.load(path, own_gil_error=interpreters.own_gil_error())


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def compare(answers: Sequence[Told[ServedTable]], wanted: configuration.Config) -> Compared:
    """Return how a config differs from what each worker serves that has answered."""
    return [(told.place, _differences(told.answer, wanted)) for told in answers if not isinstance(told.answer, Error)]


class Renewal(NamedTuple):
    """A certificate that was renewed, and whether it can be used.

    Attributes:
        path: of its file; there is another certificate in it than some worker serves with.
        pair: the new one, if it can be used.
        fault: why it cannot, or "".
    """

    path: str
    pair: certificates.Pair | None
    fault: str = ""


def renewals(answers: Sequence[Told[ServedTable]]) -> dict[int, Renewal]:
    """Look which certificates were renewed since the workers began to serve with theirs.

    Returns:
        by the master's process id: gunicorns that serve the same config file may have certificates of their own.
    """
    found: dict[int, Renewal] = {}
    for told in answers:
        files = _renewed_files(told) if told.place.master not in found else None
        if files is not None:
            found[told.place.master] = _renewal(files)
    return found


def _renewed_files(told: Told[ServedTable]) -> certificates.Files | None:
    """Return where a worker's certificate is, if there is another one now."""
    found = None if isinstance(told.answer, Error) else told.answer.certificate
    if found is None:
        return None
    files: certificates.Files | None = certificates.Files(found.certificate, found.key)
    if os.geteuid() == 0 and told.place.owner != 0:
        # The workers' word is not enough for a key that only root can read.
        files = certificates.published(told.place.master) if client.is_trusted(told.place) else None
    return files if files is not None and certificates.digest_of(files.certificate) != found.digest else None


def _renewal(files: certificates.Files) -> Renewal:
    try:
        pair = certificates.read(files)
    except (OSError, ValueError, regularfiles.NotRegular) as exc:
        return Renewal(files.certificate, None, f"{files.certificate}: renewed, but it cannot be read with its key {files.key}: {exc}")
    if fault := _fault_of(pair):
        return Renewal(files.certificate, None, f"{files.certificate}: renewed, but it cannot be used with its key {files.key}: {fault}")
    return Renewal(files.certificate, pair)


def _fault_of(pair: certificates.Pair) -> str:
    import ssl  # late: few servers have TLS of their own

    if certificates.is_encrypted(pair):
        return "the key has a passphrase; use SIGHUP"
    try:
        with certificates.as_files(pair) as files:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    except (OSError, ValueError) as exc:
        return str(exc)
    return ""


def with_certificates(renewed: Mapping[int, Renewal], by_worker: Compared) -> Compared:
    """Return the differences, and where the certificate was renewed, that too."""
    usable = {master: certificates.name_of(each.path) for master, each in renewed.items() if each.pair is not None}
    more = {master: [Difference(sign="~", name=name, cost=Cost.IN_PLACE)] for master, name in usable.items()}
    return [(place, [*more.get(place.master, []), *found]) for place, found in by_worker]


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
    return differences(running, Summary(tables=new.tables, mounts=mounts))


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
