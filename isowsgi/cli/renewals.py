"""Looks which certificates were renewed since the workers began to serve with theirs, and reads them for those that cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from isowsgi import configuration
from isowsgi.cli import client
from isowsgi.cli.answers import Told
from isowsgi.cli.comparison import Compared
from isowsgi.configuration import certificates as look
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import Difference
from isowsgi.configuration.values import Certificate
from isowsgi.shared import certificates, regularfiles
from isowsgi.shared.controlmessages import Error, ServedTable
from isowsgi.shared.sockets import Place


class Renewal(NamedTuple):
    """A certificate that some worker does not serve with yet, and whether it can be used.

    Attributes:
        files: of it.
        pair: what is in them, if it can be used.
        fault: why it cannot, or "".
        is_own: whether gunicorn's settings name it.
        is_new: whether no worker serves with what these files had before.
        warnings: what clients will not like about it.
    """

    files: certificates.Files
    pair: certificates.Pair | None
    fault: str = ""
    is_own: bool = True
    is_new: bool = False
    warnings: tuple[str, ...] = ()


Renewals = dict[int, list[Renewal]]
"""By the master's process id: gunicorns that serve the same config file may have certificates of their own."""


def renewals(answers: Sequence[Told[ServedTable]], wanted: configuration.Config) -> Renewals:
    """Look which certificates were renewed since the workers began to serve with theirs, and which of the config file's are new."""
    found: Renewals = {}
    for told in answers:
        if isinstance(told.answer, Error):
            continue
        of_master = found.setdefault(told.place.master, [])
        seen = {each.files for each in of_master}
        of_master += [each for each in _renewals_of(told.place, told.answer, wanted) if each.files not in seen]
    return {master: each for master, each in found.items() if each}


def _renewals_of(place: Place, served: ServedTable, wanted: configuration.Config) -> Iterator[Renewal]:
    files = certificates.Files(served.certificate.certificate, served.certificate.key) if served.certificate is not None else None
    config = wanted.path
    if os.geteuid() == 0 and place.owner != 0:
        # The workers' word is not enough for a key that only root can read.
        said = certificates.published(place.master) if client.is_trusted(place) else None
        files, config = (said.files, said.config) if said is not None else (None, "")
    if files is not None and served.certificate is not None and certificates.digest_of(files.certificate) != served.certificate.digest:
        yield _renewal(files)
    digests = {certificates.Files(each.certificate, each.key): each.digest for each in served.certificates}
    for number, each in enumerate(wanted.tls if served.tls else ()):
        named = look.files_of(each)
        if certificates.digest_of(named.certificate) != digests.get(named, ""):
            yield _named_renewal(each, number, wanted, is_new=not digests.get(named), may_read=config == wanted.path)


def _named_renewal(table: Certificate, number: int, wanted: configuration.Config, *, is_new: bool, may_read: bool) -> Renewal:
    """Look at the files of one of the config file's tables."""
    files = look.files_of(table)
    if not may_read:
        fault = f"{wanted.path}: tls[{number}]: gunicorn was started with another config file, for which root reads no keys; use SIGHUP"
        return Renewal(files, None, fault, False, is_new)
    found = look.look(table, number, wanted.path)
    return Renewal(files, found.pair, found.fault, False, is_new, found.warnings)


def faults_of(renewed: Renewals) -> list[str]:
    """Return why certificates cannot be used, each once."""
    return list(dict.fromkeys(each.fault for found in renewed.values() for each in found if each.fault))


def warnings_of(renewed: Renewals) -> list[str]:
    """Return what clients will not like about certificates that can be used, each once."""
    return list(dict.fromkeys(text for found in renewed.values() for each in found for text in each.warnings))


def _renewal(files: certificates.Files) -> Renewal:
    try:
        pair = certificates.read(files)
    except (OSError, ValueError, regularfiles.NotRegular) as exc:
        return Renewal(files, None, f"{files.certificate}: renewed, but it cannot be read with its key {files.key}: {exc}")
    if fault := certificates.fault_of(pair):
        return Renewal(files, None, f"{files.certificate}: renewed, but it cannot be used with its key {files.key}: {fault}")
    return Renewal(files, pair)


def with_certificates(renewed: Renewals, by_worker: Compared) -> Compared:
    """Return the differences, and where certificates were renewed, those too."""
    more: dict[int, list[Difference]] = {}
    for master, found in renewed.items():
        paths = dict.fromkeys(each.files.certificate for each in found if each.pair is not None and not each.is_new)
        more[master] = [Difference(sign="~", name=certificates.name_of(path), cost=Cost.IN_PLACE) for path in paths]
    return [(place, [*more.get(place.master, []), *found]) for place, found in by_worker]
