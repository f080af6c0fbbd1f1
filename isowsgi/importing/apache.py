"""Apache with mod_wsgi: httpd.conf, or a folder such as sites-enabled."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isowsgi.importing import apachehandlers, daemonoptions, sources
from isowsgi.importing.account import Account, At, BadSource, lines_of
from isowsgi.importing.apacheconfig import Host, Reading, Told
from isowsgi.importing.apachehandlers import Handlers
from isowsgi.importing.apachesections import reach
from isowsgi.importing.daemonoptions import Daemon
from isowsgi.importing.draft import Draft, MountDraft, TlsDraft
from isowsgi.importing.nginx import files_at

# mod_wsgi's own for a daemon process; Apache's processes have others, by their MPM.
_THREADS = 15

# A path, and what stands for all that is below it.
_EXPRESSION = re.compile(r"\^?(/[\w/.~-]*?)/?(\(/\.\*\)\??|\(/\|\$\)|\(/\.\*\|\$\)|/?\.\*|/?\(\.\*\)|)\$?")

_NOT_HERE = "what this section is about has no WSGI app of its own that is known; write it to the mount"


@dataclass
class _Site:
    """A host with what it is to serve.

    Attributes:
        names: under which it is mounted; none: it takes every host.
    """

    host: Host
    names: list[str]
    aliases: list[Told] = field(default_factory=list)


def import_from(path: str, account: Account, environ: Mapping[str, str]) -> Draft:
    """Read a file, or the files of a folder in the order of their names, as Apache includes them: of one with *.conf only these.

    Raises:
        BadSource: a file cannot be read.
    """
    reading = Reading(account, environ)
    if os.path.isdir(path):
        names = sorted(
            name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name)) and not name.endswith(("~", ".bak", ".swp"))
        )
        if not names:
            raise BadSource(path, "expected files with virtual hosts, got none")
        conf = [name for name in names if name.endswith(".conf")]
        for name in conf or names:
            reading.file(os.path.join(path, name), os.path.join(path, name))
        for name in names if conf else ():
            if name not in conf:
                _leave(os.path.join(path, name), account)
    else:
        reading.file(path, path)
    return _Import(reading, account, path).run()


class _Import:
    """Makes a draft of what was read."""

    def __init__(self, reading: Reading, account: Account, source: str) -> None:
        self.reading, self.account = reading, account
        self.handlers = Handlers(reading.main, reading.hosts)
        self.draft = Draft(source=source)
        self.daemons: dict[str, Daemon] = {}
        self.named: set[str] = set()
        self.sites: list[_Site] = []

    def run(self) -> Draft:
        everywhere = [self.reading.main, *self.reading.hosts]
        for host in everywhere:
            for told in host.told:
                if told.name == "wsgidaemonprocess":
                    self._daemon(told)
        self.sites = self._sites()
        for site in self.sites:
            taken: list[tuple[str, At]] = []
            for told in site.aliases:
                for where, script in self._scripts(told, site.host) if told.name == "alias" else self._places(told):
                    self._mount(site, told, where, script, taken)
        for host in everywhere:
            for told in host.told:
                self._rest(told, host)
        self._certificates()
        self.draft.drop_lone_groups()
        for daemon in self.daemons.values():
            if daemon.name not in self.named:
                self.account.left(daemon.at, "no app that is imported runs in this daemon process")
        return self.draft

    def _daemon(self, told: Told) -> None:
        if not told.words:
            raise BadSource(told.at, "expected a name after WSGIDaemonProcess, got none")
        daemon = daemonoptions.read(told, self.draft, self.account)
        daemon.settings.setdefault("threads", _THREADS)
        self.daemons[daemon.name] = daemon

    def _sites(self) -> list[_Site]:
        """Return the hosts that have apps, with their names.

        Apache sends a request for an unknown host to the first host of the address. Here a mount without a host takes it, and would take
        from other hosts what their mounts do not take; so it is written only where they take everything.
        """
        main = _Site(self.reading.main, [], self._aliases(self.reading.main))
        sites = [_Site(host, list(dict.fromkeys(host.names)), self._aliases(host)) for host in self.reading.hosts]
        by_address: dict[str, list[_Site]] = {}
        for site in sites:
            by_address.setdefault(site.host.address.rpartition(":")[2], []).append(site)
        for members in by_address.values():
            first, others = members[0], members[1:]
            for site in others:
                if not site.names and site.host.at is not None:
                    self.account.changed(
                        site.host.at, "it has no ServerName, and another host of this address is before it: it was never reached"
                    )
                    site.aliases = []
            if all(_takes_all(site) or {*site.names} <= {*first.names} for site in others):
                self._takes_strangers(first, sites)
            elif first.aliases and first.host.at is not None:
                self.account.changed(first.host.at, "requests for unknown hosts went to this first host; they are answered 404 now")
        return [*sites, main]

    def _aliases(self, host: Host) -> list[Told]:
        """Return what leads to apps; an Alias counts before a WSGIScriptAlias, as in mod_wsgi."""
        scripts = [told for told in host.told if told.name == "alias" and self.handlers.target(told, host).is_app]
        return scripts + [told for told in host.told if told.name.startswith("wsgiscriptalias")]

    def _scripts(self, told: Told, host: Host) -> list[tuple[str, str]]:
        """Return path and script of each app that an Alias leads to."""
        where, path = told.words
        target = self.handlers.target(told, host)
        if not target.is_folder:
            return [(where.rstrip("/"), path)]
        text = f"a mount for each script that is in {path} now: {', '.join(target.scripts)}"
        if target.others:
            text += f"; its other files, such as {target.others[0]}, are not served: move them to a folder of files"
        self.account.changed(told.at, text)
        return [(f"{where.rstrip('/')}/{name}", os.path.join(path, name)) for name in target.scripts]

    def _takes_strangers(self, first: _Site, sites: list[_Site]) -> None:
        """Have a host take every host, if no other one loses anything by that."""
        rest = [site for site in sites if site is not first and site.aliases and not {*site.names} <= {*first.names}]
        if first.aliases and all(_takes_all(site) for site in rest):
            for site in sites:
                if site is first or ({*site.names} <= {*first.names} and site.names):
                    site.names = []

    def _places(self, told: Told) -> list[tuple[str, str]]:
        """Return path and script of each app of a WSGIScriptAlias or WSGIScriptAliasMatch."""
        options = [word for word in told.words if re.match(r"(process-group|application-group|callable-object)=", word)]
        plain = [word for word in told.words if word not in options]
        if len(plain) != 2:
            raise BadSource(told.at, f"expected a path and a script after {_SHOWN.get(told.name)}, got {' '.join(told.words)!r}")
        where, target = plain
        if told.name == "wsgiscriptaliasmatch":
            found = _EXPRESSION.fullmatch(where)
            passes_on = target.endswith("$1") and found is not None and found[2].startswith("(/.*)")
            target = target.removesuffix("$1") if passes_on else target
            if found is None or "$" in target:
                self.account.left(told.at, "write a mount for each path that this expression stands for")
                return []
            where = found[1]
            if not passes_on:
                text = f"a mount takes {where} and all below it; SCRIPT_NAME was all that the expression matched, and is {where} now"
                self.account.changed(told.at, text)
        if target.endswith("/") or os.path.isdir(target):
            names = sorted(name for name in os.listdir(target) if name.endswith((".wsgi", ".py"))) if os.path.isdir(target) else []
            self.account.changed(told.at, f"a mount for each script that is in {target} now: {', '.join(names) or 'none'}")
            return [(f"{where.rstrip('/')}/{name}", os.path.join(target, name)) for name in names]
        return [(where.rstrip("/"), target)]

    def _mount(self, site: _Site, told: Told, where: str, script: str, taken: list[tuple[str, At]]) -> None:
        """Add a mount; Apache takes the first alias that matches, and isowsgi the longest."""
        for other, at in taken:
            if (where + "/").startswith(other + "/") and where != other:
                self.account.left(told.at, f"never reached: {at} comes first and takes {other or '/'} and all below it")
                return
        taken.append((where, told.at))
        options = dict(word.split("=", 1) for word in told.words if re.match(r"(process-group|application-group|callable-object)=", word))
        process = options.get("process-group") or self._word("wsgiprocessgroup", site, where, script)
        application = options.get("application-group") or self._word("wsgiapplicationgroup", site, where, script)
        name = options.get("callable-object") or self._word("wsgicallableobject", site, where, script)
        daemon = self.daemons.get(process)
        settings = dict(daemon.settings) if daemon else self._embedded(told)
        if daemon:
            self.named.add(daemon.name)
            self.account.changed(
                told.at, 'its daemon process is an interpreter of the worker; isolation = "process" is a process of its own'
            )
        elif process and not process.startswith("%{"):
            self.account.changed(told.at, f"no WSGIDaemonProcess {process} was read: add its threads, venv and folders")
        if env := self._env(site, where, script):
            settings["env"] = {**settings.get("env", {}), **env}
        if group := _group(application, process, site):
            settings["group"] = group
        if self._word("wsgiscriptreloading", site, where, script).lower() != "off" and not self._has_touch(settings.get("group")):
            settings["touch"] = script
        host = site.names[0] if site.names else ""
        if len(site.names) > 1:
            settings["hosts"] = site.names[1:]
        app = script if name in ("", "application") else f"{script}:{name}"
        self.draft.mount(MountDraft(pattern=host + (where or "/"), app=app, at=told.at, settings=settings), self.account)

    def _has_touch(self, group: str | None) -> bool:
        """Whether a mount of the group says it already: what one says holds for all."""
        return group is not None and any(mount.settings.get("group") == group and "touch" in mount.settings for mount in self.draft.mounts)

    def _embedded(self, told: Told) -> dict[str, Any]:
        settings: dict[str, Any] = {"pythonpath": [], "threads": _THREADS}
        for each in self.reading.main.told:
            if each.name == "wsgipythonhome" and each.words:
                settings["venv"] = each.words[0]
            elif each.name == "wsgipythonpath" and each.words:
                settings["pythonpath"] = [folder for folder in each.words[0].split(":") if folder]
        text = f"it ran in Apache's own processes (embedded mode); here with {_THREADS} threads in each of gunicorn's workers"
        self.account.changed(told.at, text)
        return settings

    def _word(self, name: str, site: _Site, where: str, script: str) -> str:
        """Return the value of a directive that holds for an app: the nearest section's, then the host's, then the server's."""
        best, rank = "", -1
        for host, base in ((self.reading.main, 0), (site.host, 1)):
            for told in host.told:
                if told.name == name and told.words and (found := reach(told, where, script)) is not None and found + base >= rank:
                    best, rank = told.words[0], found + base
        return best

    def _env(self, site: _Site, where: str, script: str) -> dict[str, str]:
        env = {}
        for host in (self.reading.main, *([site.host] if site.host is not self.reading.main else [])):
            for told in host.told:
                if told.name == "setenv" and told.words and reach(told, where, script) is not None:
                    env[told.words[0]] = told.words[1] if len(told.words) > 1 else ""
        return env

    def _rest(self, told: Told, host: Host) -> None:
        """Say what became of a directive that is part of mounts, or of none."""
        account, words = self.account, told.words
        used = [
            mount
            for mount in self.draft.mounts
            if told.here is None or reach(told, mount.pattern.partition("/")[2], mount.app or "") is not None
        ]
        if told.name in ("user", "group") and words:
            daemons = self.daemons
            if not daemons:
                self.draft.set_server(told.name, words[0], account, told.at)
            else:
                account.left(told.at, f"daemon processes have users of their own; gunicorn's {told.name} is theirs")
        elif told.name == "setenv" and words:
            account.hide(told.at)
            text = f"env.{words[0]}: in the app's os.environ, and no longer in the environ of its requests"
            (account.changed if used else account.left)(told.at, text if used else _NOT_HERE)
        elif told.name == "alias" and len(words) == 2:
            self._files(told, host, *words)
        elif told.name in ("sethandler", "addhandler"):
            account.say(told.at, *self.handlers.verdict(told))
        elif told.name == "redirect":
            self._redirect(told, host)
        elif told.name == "keepalivetimeout" and words and words[0].isdigit():
            self.draft.set_server("keepalive", int(words[0]), account, told.at)
        elif told.name == "documentroot":
            account.left(
                told.at, "the proxy serves what Apache sent of that folder, and nothing that it ran, if anything is asked for there"
            )
        elif told.name == "wsgiscriptreloading":
            account.changed(
                told.at, "touch of each mount: a changed script replaces that app, without a gap" if words != ["Off"] else "no touch"
            )
        elif told.name in _PARTS:
            (account.taken if used else account.left)(told.at, _PARTS[told.name] if used else _NOT_HERE)

    def _certificates(self) -> None:
        """Take over the certificates, if all hosts with apps have one: gunicorn speaks TLS on all of its addresses or on none."""
        served = [site.host for site in self.sites if site.aliases]
        is_all = all(host.words("sslcertificatefile") and host.names for host in served)
        for host in (self.reading.main, *self.reading.hosts):
            certificate, key = host.words("sslcertificatefile"), host.words("sslcertificatekeyfile")
            for told in host.told:
                if told.name not in ("sslcertificatefile", "sslcertificatekeyfile"):
                    continue
                if not is_all or host not in served or len(certificate) != 1 or len(key) > 1:
                    self.account.left(told.at, _NO_TLS)
                elif told.name == "sslcertificatefile":
                    names, pem = list(dict.fromkeys(host.names)), certificate[0]
                    wanted = TlsDraft(hosts=names, certificate=pem, key=key[0] if key else pem, at=told.at)
                    self.draft.tls.append(wanted)
                    self.account.changed(told.at, "a [[tls]] table; gunicorn speaks TLS on all of its addresses then (bind)")
                else:
                    self.account.taken(told.at, "key of the [[tls]] table")

    def _files(self, told: Told, host: Host, where: str, path: str) -> None:
        names = next(site.names for site in self.sites if site.host is host)
        target = self.handlers.target(told, host)
        if target.is_app:
            return
        if target.fault or target.handler:
            self.account.left(told.at, apachehandlers.reason(target))
            return
        if not where.strip("/") or (host is self.reading.main and any(site.names for site in self.sites)):
            # What is said outside of all hosts holds for each of them; here a pattern with a host wins over one without.
            self.draft.proxy += [] if target.hidden else files_at(where, path)
            line = f"without {target.hidden}, which it would send" if target.hidden else "the location line is below"
            self.account.left(told.at, f"let the proxy serve {path}: {line}")
            return
        settings: dict[str, Any] = {"static": path.rstrip("/") if where.endswith("/") else path, "index": ""}
        if names[1:]:
            settings["hosts"] = names[1:]
        pattern = (names[0] if names else "") + where.rstrip("/")
        mount = MountDraft(pattern=pattern, app=None, at=told.at, settings=settings)
        if target.hidden:
            self.draft.mount(mount, self.account)
            self.account.changed(told.at, f"{target.hidden} is not sent, and not read: what it says is the proxy's")
        else:
            self.draft.files(mount, where, path, self.account)

    def _redirect(self, told: Told, host: Host) -> None:
        *status, where, target = told.words if len(told.words) >= 2 else ("", "")
        code = {"permanent": 301, "temp": 302, "seeother": 303}.get(status[0] if status else "temp") or (status[0] if status else "302")
        names = host.names
        if where == "/" or not names or not re.match(r"https?://|/", target) or str(code) not in ("301", "302", "307", "308"):
            self.account.left(
                told.at, "the proxy's: return 301 https://$host$request_uri; or https_only for a mount, if TLS ends before gunicorn"
            )
            return
        settings: dict[str, Any] = {"redirect": target.rstrip("/") + "{path}", "status": int(code)}
        if names[1:]:
            settings["hosts"] = names[1:]
        self.draft.mount(MountDraft(pattern=names[0] + where.rstrip("/"), app=None, at=told.at, settings=settings), self.account)


def _leave(path: str, account: Account) -> None:
    """Say of a file that it is not read."""
    text = sources.read(path)
    lines = tuple(number for number, line in enumerate(lines_of(text), 1) if line.strip())
    if lines and account.open(path, os.path.abspath(path), text, lines):
        account.join(At(path, lines))
        account.left(At(path, lines), "Apache reads the *.conf of such a folder only; if it reads this one too, import it by its name")


_NO_TLS = (
    "the proxy's; or a [[tls]] table with hosts, certificate and key, if all clients may use TLS: gunicorn speaks it on all "
    "of its addresses or on none"
)

_SHOWN = {"wsgiscriptalias": "WSGIScriptAlias", "wsgiscriptaliasmatch": "WSGIScriptAliasMatch"}

_PARTS = {
    "wsgiprocessgroup": "the daemon process' settings are the mount's",
    "wsgiapplicationgroup": "group, where several apps share an interpreter",
    "wsgicallableobject": "the name after the colon of the app",
    "wsgipythonhome": "venv, for apps without a daemon process that has one",
    "wsgipythonpath": "pythonpath, for apps without a daemon process that has one",
}


def _takes_all(site: _Site) -> bool:
    """Whether a host's apps leave no path to others; a host without an app takes nothing from one that has."""
    return any(
        told.name in ("alias", "wsgiscriptalias") and told.words[:1] == ["/"] and not os.path.isdir(told.words[1]) for told in site.aliases
    )


def _group(application: str, process: str, site: _Site) -> str:
    """Return the group of apps that share an interpreter, or "" for one of its own, as mod_wsgi has it unless told."""
    if application in ("", "%{RESOURCE}"):
        return ""
    if application == "%{GLOBAL}":
        application = "global"
    elif application == "%{SERVER}":
        application = site.host.names[0] if site.host.names else "server"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{process}-{application}" if process and not process.startswith("%{") else application)
    return name[:64].strip("-")
