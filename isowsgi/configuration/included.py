"""Config files that the main one includes: one for each site, say. A fault in one costs its own mounts only."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from typing import Any

import attrs

from isowsgi.configuration import checks
from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.converter import make_converter
from isowsgi.configuration.faults import ConfigError, Fault, at, quoted
from isowsgi.configuration.merging import MERGED, mounts_of, named
from isowsgi.configuration.parsing import parse, texts_of
from isowsgi.configuration.tables import IncludedTables, settings_of
from isowsgi.configuration.values import FILES_GROUP, NO_APP, Config, Mount, numbered


def files(patterns: Iterable[str], folder: str) -> list[str]:
    """Return the absolute paths of the files that some globs find, each once: glob by glob, sorted; nothing if there is none.

    Args:
        folder: that relative globs begin at.
    """
    found = (path for pattern in patterns for path in sorted(glob.glob(os.path.join(folder, pattern))))
    return list(dict.fromkeys(os.path.normpath(path) for path in found))


def faulty_mount(pattern: str, host: str, prefix: str, hosts: Iterable[str], file: str, fault: str) -> Mount:
    """Return what stands for a mount that cannot be read: it is answered 503, so that no other mount gets its requests."""
    return Mount(pattern=pattern, host=host, prefix=prefix, hosts=tuple(hosts), app=NO_APP, file=file, fault=fault)


def keep_faulty(new: Config, old: Config) -> Config:
    """Return a config in which mounts whose file has faults stay as they were, if they were.

    Args:
        new: as it was read.
        old: what is served.
    """
    if not new.faulty and not any(mount.fault for mount in new.mounts):
        return new
    before = {mount.pattern: mount for mount in old.mounts}
    mounts = [before.get(mount.pattern, mount) if mount.fault else mount for mount in new.mounts]
    there = {mount.pattern for mount in mounts}
    mounts += [mount for mount in old.mounts if mount.file in new.faulty and mount.pattern not in there]
    return attrs.evolve(new, mounts=numbered(mounts))


class Inclusion:
    """Reads the files that the main one includes.

    Args:
        folder: of the main file.
        shown: the same as it was given.
        defaults: the main file's, which hold where an included file says nothing else.
        written: the same as the file has them.
        seen: the patterns of all files so far.
        mounts: takes those of each file.

    Attributes:
        faults: of all files.
        faulty: the files that have some, and empty ones.
    """

    def __init__(
        self,
        folder: str,
        shown: str,
        own_gil_error: str | None,
        defaults: dict[str, Any],
        written: Any,
        seen: dict[Pattern, str],
        mounts: list[Mount],
    ) -> None:
        self._folder = folder
        self._shown = shown
        self._own_gil_error = own_gil_error
        self._defaults = defaults
        self._written = written
        self._seen = seen
        self._mounts = mounts
        self.faults: list[str] = []
        self.faulty: list[str] = []

    def add(self, file: str) -> None:
        """Read one file; if it has faults, its patterns get mounts that are answered 503."""
        shown = os.path.join(self._shown, os.path.relpath(file, self._folder))
        before = dict(self._seen)
        try:
            data = parse(shown, file)
        except ConfigError as exc:
            self.faults += exc.faults
            self.faulty.append(file)
            return
        if not data:
            self.faulty.append(file)  # not written yet: what it had stays, and there is nothing to tell anybody
            return
        try:
            mounts = self._read(file, data, f" in {shown}")
        except ExceptionGroup as group:
            texts = texts_of(shown, data, group)
            self.faults += texts
            self.faulty.append(file)
            self._seen.clear()
            self._seen.update(before)
            mounts = []
            for addresses in checks.addresses_of(data.get("mounts")):
                free = tuple(address for address in addresses if address not in self._seen)
                if free:
                    self._seen.update(dict.fromkeys(free, f"{quoted(str(free[0]))} in {shown}"))
                    mounts.append(faulty_mount(**named(free), file=file, fault=texts[0]))
        self._mounts += [attrs.evolve(mount, number=len(self._mounts) + place) for place, mount in enumerate(mounts)]

    def _read(self, file: str, data: dict[str, Any], where: str) -> list[Mount]:
        folder = os.path.dirname(file)
        written = data.get("defaults", {})
        if isinstance(self._written, dict) and isinstance(written, dict):
            written = {**self._written, **written}
        converter = make_converter(folder, self._own_gil_error, written, self._seen, where=where, needs_mounts=False)
        tables = converter.structure(data, IncludedTables)
        defaults = {**self._defaults, **(own := settings_of(tables.defaults))}
        for key in MERGED:
            if key in defaults:
                defaults[key] = self._defaults.get(key, {}) | own.get(key, {})
        mounts = mounts_of(tables.mounts, list(data["mounts"]), defaults, folder)
        taken = {mount.group for mount in self._mounts} - {None, FILES_GROUP}
        faults = [
            at(("mounts", text, "group"), Fault(f"another file has mounts in the group {mount.group!r}; keep a group's mounts in one file"))
            for text, mount in zip(data["mounts"], mounts, strict=False)
            if mount.group in taken
        ]
        if faults:
            raise ExceptionGroup("groups", faults)
        return [attrs.evolve(mount, file=file) for mount in mounts]
