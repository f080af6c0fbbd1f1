"""NGINX Unit: its configuration as JSON, as the control API gives it.

After its documentation (unit.nginx.org/configuration): the first step whose match holds is taken, and an app sees the whole path in
PATH_INFO unless it has a `prefix`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from isowsgi.importing import jsontext, sources, unitapp
from isowsgi.importing.account import Account, At, BadSource
from isowsgi.importing.draft import Draft, MountDraft
from isowsgi.importing.jsontext import Path
from isowsgi.importing.nginx import files_at
from isowsgi.importing.unitroutes import Lead, Remark, Share, leads


def import_from(path: str, account: Account, environ: Mapping[str, str]) -> Draft:
    """Read a file.

    Raises:
        BadSource: it is none of Unit's, or an app of it cannot be run.
    """
    text = sources.read(path)
    config = jsontext.parse(path, text)
    if not isinstance(config, dict):
        raise BadSource(path, "expected an object with listeners and applications")
    account.open(path, os.path.abspath(path), text, jsontext.counted(text))
    base: Path = ()
    if isinstance(config.get("config"), dict):  # all of the control API, with the certificates beside
        base, config = ("config",), config["config"]
    return _Import(path, text, config, base, account).run()


class _Import:
    """Makes a draft of one configuration."""

    def __init__(self, path: str, text: str, config: dict[str, Any], base: Path, account: Account) -> None:
        self.config, self.account = config, account
        self.draft = Draft(source=path)
        self.folder = os.path.dirname(os.path.abspath(path))
        self.places: dict[Path, At] = {
            place[len(base) :] if place[: len(base)] == base else ("/", *place): at for place, _, at in jsontext.places(path, text)
        }
        for at in self.places.values():
            if len(at.lines) > 1:  # a value that is not on its key's line
                account.join(at)
        self.said: set[Path] = set()
        self.apps: dict[Path, unitapp.App | None] = {}
        self.common: dict[str, Any] = {}
        self.before: list[Lead | Share] = []  # of this listener: Unit takes the first that matches

    def run(self) -> Draft:
        self._settings()
        for address, listener in self._table("listeners").items():
            self._listener(address, listener)
        self.draft.drop_lone_groups()
        self._leftovers()
        return self.draft

    def say(self, outcome: str, place: Path, note: str) -> None:
        """Say what became of a value; of several on a line each says its own."""
        self.said.add(place)
        if (at := self.places.get(place)) is not None:
            {"taken": self.account.taken, "changed": self.account.changed, "left": self.account.left}[outcome](at, note)

    def say_all(self, outcome: str, place: Path, note: str) -> None:
        """Say it of a place and of all below it."""
        for each in self.places:
            if each[: len(place)] == place:
                self.say(outcome, each, note)

    def _table(self, *place: str) -> dict[str, Any]:
        value: Any = self.config
        for part in place:
            value = value.get(part, {}) if isinstance(value, dict) else {}
        return value if isinstance(value, dict) else {}

    def _listener(self, address: str, listener: Any) -> None:
        place: Path = ("listeners", address)
        bind = re.sub(r"^\*:", ":", address)
        if self.places.get(place) is not None:
            self.said.add(place)
            self.draft.bind(bind, self.account, self.places[place])
        if not isinstance(listener, dict):
            return
        for key, value in listener.items():
            if key == "pass":
                self.before = []
                for found in leads(self.config, (*place, "pass"), str(value)):
                    self._found(found)
            elif key == "backlog" and isinstance(value, int):
                self.draft.set_server("backlog", value, self.account, self.places[(*place, key)])
                self.said.add((*place, key))
            else:
                note = {
                    "tls": "the proxy's; or gunicorn's certfile: Unit keeps each bundle, with its key, in certs/ of its state folder",
                    "forwarded": "gunicorn's forwarded_allow_ips, and werkzeug's ProxyFix in the app",
                    "client_ip": "gunicorn's forwarded_allow_ips, and werkzeug's ProxyFix in the app",
                }.get(key, "the proxy's")
                self.say_all("left", (*place, key), note)

    def _found(self, found: Lead | Share | Remark) -> None:
        if isinstance(found, Remark):
            (self.say_all if found.whole else self.say)(found.outcome, found.at, found.note)
            if found.location is not None:
                self.draft.proxy += [line for line in files_at(*found.location) if line not in self.draft.proxy]
            return
        if isinstance(found, Lead) and self._app(found.app) is None:
            self.say("left", found.at, f"there is no Python app {'/'.join(map(str, found.app))} that speaks WSGI")
            return
        hosts = found.hosts or ("",)
        for prefix in found.prefixes:
            if any(set(hosts) <= {*lead.hosts} or not lead.hosts for lead in self.before if _takes(lead.prefixes, prefix)):
                self.say("left", found.at, f"never reached: a step before takes {prefix or '/'} and all below it")
                continue
            self._place(found, hosts, prefix)
            self._again(hosts, prefix)
        self.before.append(found)

    def _again(self, hosts: tuple[str, ...], prefix: str) -> None:
        """Mount what earlier steps take from every host at these hosts too: here a pattern with a host wins over one without."""
        for lead in self.before if hosts != ("",) else ():
            for where in lead.prefixes if not lead.hosts else ():
                if _takes((prefix,), where):
                    self._place(lead, hosts, where)

    def _place(self, found: Lead | Share, hosts: tuple[str, ...], prefix: str) -> None:
        """Mount what a step leads to, at a path of some hosts."""
        if isinstance(found, Lead):
            if (app := self._app(found.app)) is not None:
                for where, script in app.places(prefix):
                    self._mount(hosts[0], hosts[1:], where, script, app, found.at)
            return
        self.said.add(found.at)
        settings = {"static": found.path(prefix), **found.settings, **({"hosts": list(hosts[1:])} if hosts[1:] else {})}
        pattern = hosts[0] + (prefix or "/")
        wanted = MountDraft(pattern=pattern, app=None, at=self.places[found.at], settings=settings)
        if not any(mount.pattern == pattern and mount.at == wanted.at for mount in self.draft.mounts):
            self.draft.files(wanted, prefix or "/", found.path(prefix), self.account)

    def _app(self, place: Path) -> unitapp.App | None:
        if place not in self.apps:
            table = self._table(*map(str, place[:2]))
            self.apps[place] = unitapp.read(self, place, table) if table else None
        return self.apps[place]

    def _mount(self, host: str, others: tuple[str, ...], where: str, script: str, app: unitapp.App, place: Path) -> None:
        settings = {**self.common, **app.settings, "group": app.group}
        if others:
            settings["hosts"] = list(others)
        target = app.target
        if script:
            target = f"{app.group}{(where or '/').replace('/', '-')}.wsgi"
            self.draft.scripts[target] = script
            self.say("changed", place, f"{target} gives the app the whole path in PATH_INFO, as Unit did")
        at = self.places[place]
        self.said.add(place)
        pattern = host + (where or "/")
        if not any(mount.pattern == pattern and mount.at == at for mount in self.draft.mounts):
            self.draft.mount(MountDraft(pattern=pattern, app=target, at=at, settings=settings), self.account)

    def _settings(self) -> None:
        """Take over what is Unit's as a whole."""
        http = self._table("settings", "http")
        for key, value in http.items():
            place: Path = ("settings", "http", key)
            if key == "header_read_timeout":
                self.draft.tables.setdefault("acceptor", {})["head_timeout"] = value
                self.say("taken", place, "head_timeout in [acceptor]")
            elif key in ("body_read_timeout", "send_timeout"):
                name = {"body_read_timeout": "body_timeout"}.get(key, key)
                self.common[name] = value
                self.say("taken", place, f"{name} of each mount")
            elif key == "idle_timeout" and isinstance(value, int):
                self.draft.set_server("keepalive", value, self.account, self.places[place])
                self.said.add(place)
            else:
                note = "the proxy's: client_max_body_size" if key == "max_body_size" else "the proxy's"
                self.say_all("left", place, note)
        log = self.config.get("access_log")
        if isinstance(log, str):
            self.draft.set_server("accesslog", log, self.account, self.places["access_log",])
            self.said.add(("access_log",))
        elif log is not None:
            self.say_all("left", ("access_log",), "gunicorn's accesslog and access_log_format")

    def _leftovers(self) -> None:
        """Say of what nothing leads to that it does not count, and of brackets that what is in them is told."""
        kinds = {
            "applications": "no listener leads to it",
            "routes": "no listener leads to it",
            "upstreams": "the proxy's: upstream",
            "certificates": "the proxy's: its certificates",
            "js_module": "the proxy's: njs",
        }
        for place in self.places:
            if place in self.said:
                continue
            if any(other[: len(place)] == place for other in self.said if len(other) > len(place)):
                self.say("taken", place, "what is in it is told line by line")
            else:
                self.say("left", place, kinds.get(str(place[0]) if place else "", "isowsgi has nothing for it; see Unit's manual"))


def _takes(prefixes: tuple[str, ...], path: str) -> bool:
    return any((path + "/").startswith(prefix + "/") for prefix in prefixes)
