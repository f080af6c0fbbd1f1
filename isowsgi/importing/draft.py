"""What a source becomes: mounts, gunicorn's settings, lines for a proxy, and files to write beside. Values only, no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from isowsgi.importing.account import Account, At
from isowsgi.importing.nginx import files_at

# Of a folder that the other server served itself.
FILES_NOTE = "served by isowsgi itself; the proxy can do it with less work, by the location lines below"


@dataclass(kw_only=True)
class MountDraft:
    """A mount to be.

    Attributes:
        pattern: host and path, as in the config file.
        app: None for one that has `redirect` or `static` in its settings.
        notes: comments above it.
        unusable: keys that the loader refuses here, with the reason: they are written as comments. "app": the whole mount is.
    """

    pattern: str
    app: str | None
    at: At
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class TlsDraft:
    """A `[[tls]]` table to be.

    Attributes:
        unusable: why it is written as a comment, or "".
    """

    hosts: list[str]
    certificate: str
    key: str
    at: At
    unusable: str = ""


@dataclass(kw_only=True)
class Draft:
    """What the importer writes.

    Attributes:
        server: gunicorn's settings, by name.
        tables: of the config file besides mounts, as {"worker": {"max_rss": 500}}.
        tls: certificates by host.
        proxy: lines for an nginx `server` block.
        scripts: files beside the config file that mounts name, by file name.
    """

    source: str
    mounts: list[MountDraft] = field(default_factory=list)
    server: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    tls: list[TlsDraft] = field(default_factory=list)
    proxy: list[str] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)

    def mount(self, wanted: MountDraft, account: Account) -> None:
        """Add a mount, or say why its line is not taken: another one has the pattern."""
        for other in self.mounts:
            if other.pattern == wanted.pattern:
                if (other.app, other.settings) == (wanted.app, wanted.settings):
                    account.taken(wanted.at, f"the same as {other.at}: one mount serves both")
                else:
                    text = f"{wanted.pattern} is the app of {other.at} already, and isowsgi has one table for all addresses"
                    account.left(wanted.at, text + "; give this app a host of its own, or a gunicorn of its own")
                return
        self.mounts.append(wanted)
        settings = wanted.settings
        account.taken(wanted.at, f'mounts."{wanted.pattern}" = {wanted.app or settings.get("redirect") or settings["static"]}')

    def files(self, wanted: MountDraft, where: str, path: str, account: Account) -> None:
        """Add a mount that serves files; a proxy that serves them instead has its lines, too."""
        self.proxy += [line for line in files_at(where, path) if line not in self.proxy]
        self.mount(wanted, account)
        account.changed(wanted.at, FILES_NOTE)

    def drop_lone_groups(self) -> None:
        """Take the group from each mount that is alone in it: it has an interpreter of its own all the same."""
        sizes = Counter(mount.settings.get("group") for mount in self.mounts)
        for mount in self.mounts:
            if sizes[mount.settings.get("group")] == 1:
                mount.settings.pop("group", None)

    def set_server(self, name: str, value: Any, account: Account, at: At, note: str = "") -> None:
        """Set one of gunicorn's settings; the first word counts, but for `workers`, where the largest does."""
        said = f"gunicorn's {name} = {value!r}" + (f": {note}" if note else "")
        before = self.server.get(name)
        if name == "workers" and before is not None and before != value:
            self.server[name] = max(before, value)
            account.changed(at, f"all apps run in the same workers: gunicorn's workers = {self.server[name]}")
        elif before is not None and before != value:
            account.left(at, f"gunicorn's {name} is {before!r} already, for all apps; start a gunicorn of its own for another one")
        else:
            self.server[name] = value
            account.changed(at, said) if note else account.taken(at, said)

    def set_account(self, name: str, value: Any, settings: dict[str, Any], account: Account, at: At, note: str = "") -> None:
        """Set the `user` or `group` of an app: gunicorn's, as long as all apps have the same, else the mount's own.

        Args:
            settings: of the app's mounts.
        """
        if self.server.get(name, value) == value and not (name == "group" and "user" in settings):
            self.set_server(name, value, account, at, note)
            return
        user, _, group = str(settings.get("user", "")).partition(":")
        user, group = (str(value), group) if name == "user" else (user or str(self.server.get("user", "")), str(value))
        settings["user"] = f"{user}:{group}" if group else user
        account.changed(at, f"user of the mount, whose process runs as {settings['user']}; gunicorn must be started as root for it")

    def bind(self, address: str, account: Account, at: At, note: str = "") -> None:
        """Add an address to listen on."""
        binds = self.server.setdefault("bind", [])
        if address not in binds:
            binds.append(address)
        said = f"gunicorn's bind = {address!r}" + (f": {note}" if note else "")
        account.changed(at, said) if note else account.taken(at, said)
