"""From a source to what is written: reads it, has the loader judge the result, and writes as comments what the loader refuses here."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from isowsgi import configuration
from isowsgi.configuration import certificates
from isowsgi.configuration.faults import place_text
from isowsgi.configuration.values import Certificate
from isowsgi.importing import kinds, writing
from isowsgi.importing.account import Account, BadSource, Entry
from isowsgi.importing.draft import Draft, MountDraft, TlsDraft


class Made(NamedTuple):
    """What an import comes to.

    Attributes:
        files: texts by path.
        sources: files that were read.
        entries: what became of each line.
        quiet_lines: how many lines were blank, comments or mere brackets.
        proxy: lines for nginx.
    """

    kind: str
    files: dict[str, str]
    sources: list[str]
    entries: list[Entry]
    quiet_lines: int
    proxy: list[str]


def make(source: str, target: str, kind: str | None, environ: Mapping[str, str]) -> Made:
    """Import a source.

    Args:
        target: where the config file will be; gunicorn's settings and scripts come beside it.
        kind: "uwsgi", "apache" or "unit"; None: by what the source contains.

    Raises:
        BadSource: with the place and what was expected.
    """
    account = Account()
    kind = kind or kinds.kind_of(source)
    draft = kinds.READERS[kind](source, account, environ)
    if not draft.mounts:
        raise BadSource(source, "expected at least one WSGI app, got none; the report of --json says what became of each line")
    folder = os.path.dirname(os.path.abspath(target))
    settle(draft, account, folder)
    look_at_certificates(draft, account)
    title = f"Made by isowsgi import from {source}. Check it with: gunicorn --config gunicorn.conf.py --check-config"
    files = {target: writing.config_file(draft, title)}
    files[os.path.join(os.path.dirname(target), "gunicorn.conf.py")] = writing.gunicorn_file(draft, os.path.abspath(target), title)
    files |= {os.path.join(os.path.dirname(target), name): text for name, text in draft.scripts.items()}
    return Made(kind, files, list(account.paths.values()), account.entries(), account.quiet_lines(), draft.proxy)


def settle(draft: Draft, account: Account, folder: str) -> None:
    """Have the loader read the draft, until it finds no fault: what it refuses is unusable here, and written as a comment."""
    with tempfile.TemporaryDirectory(prefix="isowsgi-import-") as scratch:
        for name, text in draft.scripts.items():
            _write(os.path.join(scratch, name), text)
        path = os.path.join(scratch, "isowsgi.toml")
        while any("app" not in mount.unusable for mount in draft.mounts):
            _write(path, writing.config_file(draft, ""))
            try:
                configuration.load(path)
            except configuration.ConfigError as exc:
                faults = [fault.replace(scratch, folder) for fault in exc.faults]
                _mark(draft, account, faults)
            else:
                return


def look_at_certificates(draft: Draft, account: Account) -> None:
    """Have the files of each certificate read: nothing would start with a pair that is none. One that is hidden from us may be sound."""
    for number, each in enumerate(draft.tls):
        found = certificates.look(Certificate(hosts=tuple(each.hosts), certificate=each.certificate, key=each.key), number, draft.source)
        if found.fault and not found.is_hidden:
            _refuse(each, account, found.fault.partition(": ")[2].partition(": ")[2])


def _refuse(tls: TlsDraft, account: Account, reason: str) -> None:
    tls.unusable = f"as a comment, for here it is refused: {reason}"
    account.changed(tls.at, tls.unusable)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _mark(draft: Draft, account: Account, faults: list[str]) -> None:
    """Take each fault's key out of its mount.

    Raises:
        BadSource: a fault is of no key that can be left out.
    """
    for fault in faults:
        _, _, said = fault.partition(": ")
        if (found := re.match(r"tls\[(\d+)\][^:]*: ", said)) is not None:
            _refuse([each for each in draft.tls if not each.unusable][int(found[1])], account, said[found.end() :])
            continue
        for mount in draft.mounts:
            place = place_text(("mounts", mount.pattern))
            if not said.startswith((place + ".", place + ":", place + "[")):
                continue
            key, _, reason = said[len(place) + 1 :].partition(": ")
            name = key.partition(".")[0].partition("[")[0]
            if name == "venv" and _gets_own_python(mount, account):
                break
            if name not in mount.settings or mount.app is None:  # without it nothing is left of that
                name = "app"
            mount.unusable[name] = why = f"as a comment, for here it is refused: {reason or key.strip()}"
            account.changed(mount.at, f"{name} of {place}: {why}")
            break
        else:
            raise BadSource(draft.source, f"expected a config file without faults, got {said}")


def _gets_own_python(mount: MountDraft, account: Account) -> bool:
    """Give a mount the Python of its venv, if that is another one than this."""
    python = os.path.join(mount.settings["venv"], "bin", "python")
    if "python" in mount.settings or not os.access(python, os.X_OK):
        return False
    mount.settings["python"] = python
    mount.settings["isolation"] = "process"
    account.changed(mount.at, f"its venv is of another Python than this one: the app runs in a process of its own, with {python}")
    return True
