"""Reads a config file and those that it includes."""

import os

import attrs

from isowsgi.configuration import included
from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.converter import make_converter
from isowsgi.configuration.faults import ConfigError
from isowsgi.configuration.included import Inclusion
from isowsgi.configuration.merging import mounts_of, refuse_endless_redirects
from isowsgi.configuration.parsing import parse, texts_of
from isowsgi.configuration.tables import ConfigTables, settings_of
from isowsgi.configuration.values import Certificate, Config, Control, Limits, Log, Status
from isowsgi.shared import scoreboard, workdir


def load(path: str | os.PathLike[str], *, own_gil_error: str | None = None, base: str | None = None) -> Config:
    """Read and check a config file.

    Args:
        path: the file; faults name it as given here.
        base: the folder that a relative path begins at, as it was written, for it may lead through a link; None: the shell's.
        own_gil_error: why `isolation = "own-gil"` is refused on this Python; None: it is not.

    Raises:
        ConfigError: with all faults of the file.
    """
    shown = os.fspath(path)
    try:
        absolute = workdir.absolute(os.path.join(base or "", shown))
    except FileNotFoundError:
        raise ConfigError((f"{shown}: the working directory was deleted; give the file's absolute path",)) from None
    data = parse(shown, absolute)
    folder = os.path.dirname(absolute)
    seen: dict[Pattern, str] = {}
    if "include" in data:
        data.setdefault("mounts", {})
    try:
        converter = make_converter(folder, own_gil_error, data.get("defaults"), seen, needs_mounts="include" not in data)
        tables = converter.structure(data, ConfigTables)
        mounts = list(mounts_of(tables.mounts, list(data["mounts"]), settings_of(tables.defaults), folder))
        if "include" not in data:
            refuse_endless_redirects(mounts, list(data["mounts"]))
    except ExceptionGroup as group:
        raise ConfigError(texts_of(shown, data, group)) from None  # all is said
    reading = Inclusion(folder, os.path.dirname(shown), own_gil_error, settings_of(tables.defaults), data.get("defaults"), seen, mounts)
    for file in included.files(tables.include, folder):
        reading.add(file)
    if too_large := scoreboard.faults([mount.pattern for mount in mounts]):
        raise ConfigError(tuple(f"{shown}: {fault}" for fault in too_large))
    if not mounts and not reading.faults:
        raise ConfigError((f"{shown}: include: no file with a mount, looked for {', '.join(tables.include)} in {folder!r}",))
    limits = Limits(**attrs.asdict(tables.worker))
    control = Control(**attrs.asdict(tables.control))
    status = Status(allow=tables.status.allow, hosts=tables.status.hosts)
    log = Log(**attrs.asdict(tables.log))
    tls = tuple(
        Certificate(hosts=tuple(dict.fromkeys(each.hosts)), certificate=each.certificate, key=each.key or each.certificate)
        for each in tables.tls
    )
    return Config(
        path=absolute, mounts=tuple(mounts), include=tables.include, faults=tuple(reading.faults), faulty=tuple(reading.faulty),
        head_timeout=tables.acceptor.head_timeout, limits=limits, control=control, status=status, log=log, tls=tls,
    )  # fmt: skip
