"""What is in the files that `[[tls]]` names, and whether clients can be served with it.

Not part of reading the config file: a pair that is renewed wrongly must not keep anybody from applying another change.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from isowsgi.configuration.values import Certificate, Config
from isowsgi.shared import certificates, regularfiles
from isowsgi.shared.certificates import Facts, Files, Pair


class Look(NamedTuple):
    """What was found.

    Attributes:
        pair: as it was read; None: there is a fault.
        facts: what the certificate says of itself.
        fault: a whole line, with its place in the config file; or "".
        warnings: the same, of what clients will not like.
        is_hidden: whether the fault is that this user may not read a file.
    """

    pair: Pair | None = None
    facts: Facts | None = None
    fault: str = ""
    warnings: tuple[str, ...] = ()
    is_hidden: bool = False


def files_of(certificate: Certificate) -> Files:
    return Files(certificate.certificate, certificate.key)


def look(certificate: Certificate, number: int, shown: str) -> Look:
    """Look at the files of one table.

    Args:
        number: its place among the `[[tls]]` tables.
        shown: the config file, as faults name it.
    """
    place = f"{shown}: tls[{number}]"
    texts = {}
    for key, path in (("certificate", certificate.certificate), ("key", certificate.key)):
        try:
            texts[key] = certificates.read_one(path)
        except regularfiles.NotRegular as exc:
            return Look(fault=f"{place}.{key}: expected a file in PEM, got {exc}: {path!r}")
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            reason = (getattr(exc, "strerror", None) or str(exc)).lower()
            return Look(fault=f"{place}.{key}: cannot read {path!r}: {reason}", is_hidden=isinstance(exc, PermissionError))
    pair = Pair(**texts)
    if fault := certificates.fault_of(pair):
        return Look(fault=f"{place}: cannot serve with {certificate.certificate!r} and its key {certificate.key!r}: {fault}")
    facts = certificates.facts_of(pair)
    warnings = certificates.warnings_of(facts, certificate.hosts, time.time())
    return Look(pair, facts, warnings=tuple(f"{place}: {certificate.certificate!r}: {text}" for text in warnings))


def check(config: Config, shown: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with the certificates of a config, and what clients will not like or this user cannot see."""
    faults: list[str] = []
    warnings: list[str] = []
    for number, each in enumerate(config.tls):
        found = look(each, number, shown)
        warnings += found.warnings
        if found.is_hidden:
            warnings.append(f"{found.fault}; not checked")
        elif found.fault:
            faults.append(found.fault)
    return faults, warnings
