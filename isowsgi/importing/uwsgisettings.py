"""What each of uWSGI's options does to a draft, where there is something that does the same."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from isowsgi.importing import sources
from isowsgi.importing.account import Account, BadSource
from isowsgi.importing.draft import Draft
from isowsgi.importing.uwsgiconfig import Reading
from isowsgi.importing.uwsgiforms import Option


@dataclass
class Server:
    """One uWSGI: what its options come to.

    Attributes:
        path: its file, absolute.
        shown: how the user named it.
        folder: where its relative paths begin: its `chdir`, else the file's folder.
        module: the app that `module` or `wsgi-file` names.
        mounts: options `mount`.
        files: path and folder of each `static-map`, with it.
        is_vassal: whether it is one of several that become one gunicorn.
        settings: of each mount.
        flags: options that are on, as "manage-script-name"; "socket" if it speaks the uwsgi protocol.
    """

    path: str
    shown: str
    account: Account
    draft: Draft
    environ: Mapping[str, str]
    is_vassal: bool = False
    module: Option | None = None
    callable: str = "application"
    mounts: list[Option] = field(default_factory=list)
    files: list[tuple[str, str, Option]] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    options: list[Option] = field(default_factory=list)
    references: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.path = os.path.abspath(self.path)
        reading = Reading(path=self.path, shown=self.shown, account=self.account, environ=self.environ)
        self.options = reading.run()
        self.references = reading.used
        self.folder = os.path.dirname(self.path)
        for option in self.options:
            if option.key == "chdir":
                self.folder = sources.absolute(option.value, self.folder)

    def subscribed_host(self) -> str:
        """Return the host name under which it subscribes to a router, or ""."""
        for option in self.options:
            if option.key in ("subscribe-to", "subscribe", "subscribe2"):
                found = re.search(r"(?:key=|:)([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)(?:,|$)", option.value)
                if found and not found[1].replace(".", "").isdigit():
                    return found[1].lower()
        return ""


def _set_module(server: Server, option: Option) -> None:
    if server.module is not None:
        server.account.left(server.module.at, f"does not count: {option.at} names another app")
    server.module = option


def _set_callable(server: Server, option: Option) -> None:
    server.callable = option.value
    server.account.taken(option.at, "the name after the colon of the app")


def _add_mount(server: Server, option: Option) -> None:
    server.mounts.append(option)


def _set_chdir(server: Server, option: Option) -> None:
    chdir = server.draft.server.get("chdir")
    if chdir in (None, server.folder):
        server.draft.set_server("chdir", server.folder, server.account, option.at)
        server.account.taken(option.at, "the folder is in pythonpath too")
    else:
        text = f"only its part in sys.path: the working directory is one for all apps, {chdir!r}; build paths from __file__"
        server.account.changed(option.at, text)


def _add_folder(server: Server, option: Option) -> None:
    path = sources.absolute(option.value, server.folder)
    server.folders += (glob.glob(path) or [path]) if glob.has_magic(path) else [path]
    server.account.taken(option.at, "pythonpath")


def _add_env(server: Server, option: Option) -> None:
    server.account.hide(option.at)
    name, equals, value = option.value.partition("=")
    if not name or not equals:
        server.account.left(option.at, "it is no NAME=value, so it set nothing")
        return
    env = server.settings.setdefault("env", {})
    assert isinstance(env, dict), "made above"
    env[name] = value
    server.account.taken(option.at, f"env.{name}")


def _set_touch(server: Server, option: Option) -> None:
    server.settings["touch"] = sources.absolute(option.value, server.folder)
    server.account.changed(option.at, "touch: it replaces this app, without a gap, and not all of uWSGI")


def _set_watch(server: Server, option: Option) -> None:
    server.settings["watch"] = option.value not in ("0", "false")
    server.account.taken(option.at, "watch")


def _set_rss(server: Server, option: Option) -> None:
    server.draft.tables.setdefault("worker", {})["max_rss"] = _number(option)
    server.account.changed(option.at, "max_rss in [worker], in MiB too: the app that has grown most is replaced first, then the worker")


def _add_bind(server: Server, option: Option) -> None:
    address, _, extra = option.value.partition(",")
    if option.key in ("https", "https-socket") and _add_certificate(server, option, extra.split(",")):
        return
    is_uwsgi = option.key in ("socket", "uwsgi-socket", "s")
    if is_uwsgi:
        server.flags.add("socket")
    note = "it spoke the uwsgi protocol, and speaks HTTP now: proxy_pass instead of uwsgi_pass in nginx" if is_uwsgi else ""
    if extra or option.key in ("https", "https-socket"):
        note = "without TLS: the proxy's, or gunicorn's certfile and keyfile, which hold for all addresses"
    for each in address.split(";"):
        server.draft.bind(_address(each, server.folder), server.account, option.at, note)


_PLAIN = ("socket", "uwsgi-socket", "s", "http", "http-socket", "http11-socket")


def _add_certificate(server: Server, option: Option, words: list[str]) -> bool:
    """Take over an address with its certificate; False if that cannot be: another address does without, or a file is missing."""
    paths = [sources.absolute(path, server.folder) for path in words[:2]]
    if len(paths) < 2 or not all(map(os.path.isfile, paths)) or any(other.key in _PLAIN for other in server.options):
        return False
    server.draft.set_server("certfile", paths[0], server.account, option.at)
    server.draft.set_server("keyfile", paths[1], server.account, option.at)
    note = "ciphers and client certificates: gunicorn's ssl_context and ca_certs" if any(words[2:]) else ""
    server.draft.bind(_address(option.value.partition(",")[0], server.folder), server.account, option.at, note)
    return True


def _set_user(server: Server, option: Option) -> None:
    name = {"uid": "user", "gid": "group"}[option.key]
    value = int(option.value) if option.value.isdigit() else option.value
    note = "for all apps of all vassals that name no other" if server.is_vassal else ""
    server.draft.set_account(name, value, server.settings, server.account, option.at, note)


def _set_pidfile(server: Server, option: Option) -> None:
    server.draft.set_server("pidfile", sources.absolute(option.value, server.folder), server.account, option.at)


def _set_proc_name(server: Server, option: Option) -> None:
    server.draft.set_server("proc_name", option.value.strip(), server.account, option.at)


def _set_log(server: Server, option: Option) -> None:
    if "/" not in option.value and ":" in option.value:
        server.account.left(option.at, "gunicorn logs to files, or to syslog (syslog_addr)")
        return
    server.settings["log"] = sources.absolute(option.value.removeprefix("file:"), server.folder)
    server.account.changed(option.at, "log of the mount: its own lines; requests are in gunicorn's accesslog, off unless set")


def _set_no_access_log(server: Server, option: Option) -> None:
    server.account.taken(option.at, "gunicorn writes no access log unless accesslog is set")


def _add_files(server: Server, option: Option) -> None:
    where, _, folder = option.value.partition("=")
    if where.startswith("/") and where.strip("/") and folder:
        server.files.append((where.rstrip("/"), sources.absolute(folder, server.folder), option))
    else:
        server.account.left(option.at, f"expected /path=folder, got {option.value!r}; files for all paths are better served by the proxy")


def _set_lazy(server: Server, option: Option) -> None:
    server.settings["lazy"] = True
    server.account.changed(option.at, "lazy: the app is loaded at its first request; the workers are there always")


def _set_venv(server: Server, option: Option) -> None:
    server.settings["venv"] = sources.absolute(option.value, server.folder)
    server.account.taken(option.at, "venv")


def _number(option: Option) -> int:
    if (found := re.search(r"\$\((\w+)\)", option.value)) is not None:
        raise BadSource(option.at, f"expected {found[1]} in the environment, for {option.key}; run it as: {found[1]}=1 isowsgi import ...")
    if not re.fullmatch(r"\d{1,9}", option.value):
        raise BadSource(option.at, f"expected a whole number for {option.key}, got {option.value!r}")
    return int(option.value)


def _address(value: str, folder: str) -> str:
    if "/" in value or re.search(r"\.sock(et)?$", value):
        return "unix:" + sources.absolute(value.removeprefix("unix:"), folder)
    return value


# Whole numbers that become a mount's setting: its key, and what is different, if anything is.
_NUMBERS: dict[str, tuple[tuple[str, ...], str]] = {
    "threads": (("threads",), ""),
    **dict.fromkeys(("harakiri", "t"), (("request_timeout",), "it ends the request, not the worker, and counts from the last progress")),
    **dict.fromkeys(("max-requests", "R"), (("max_requests",), "the mount's app is replaced, without a gap, and not the worker")),
    "max-requests-delta": (("max_requests_jitter",), ""),
    "max-worker-lifetime": (("max_age",), "the mount's app is replaced, without a gap, and not the worker"),
    "idle": (("idle_timeout",), "the app is ended after that time without a request, and loaded again for the next one"),
    "socket-timeout": (("body_timeout", "send_timeout"), ""),
}

# And gunicorn's.
_SERVER_NUMBERS = {
    **dict.fromkeys(("processes", "workers", "p"), "workers"),
    **dict.fromkeys(("listen", "l"), "backlog"),
    **dict.fromkeys(("reload-mercy", "worker-reload-mercy"), "graceful_timeout"),
}


def apply(server: Server, option: Option) -> bool:
    """Take an option over, or return False if no code is needed for it."""
    if option.key in _NUMBERS:
        keys, note = _NUMBERS[option.key]
        for key in keys:
            server.settings[key] = _number(option)
        say = server.account.changed if note else server.account.taken
        say(option.at, " and ".join(keys) + (f": {note}" if note else ""))
    elif option.key in _SERVER_NUMBERS:
        server.draft.set_server(_SERVER_NUMBERS[option.key], _number(option), server.account, option.at)
    elif option.key in _HANDLERS:
        _HANDLERS[option.key](server, option)
    else:
        return False
    return True


_HANDLERS: dict[str, Callable[[Server, Option], None]] = {
    **dict.fromkeys(("module", "wsgi", "wsgi-file", "file", "w"), _set_module),
    "callable": _set_callable,
    "mount": _add_mount,
    "chdir": _set_chdir,
    **dict.fromkeys(("pythonpath", "python-path", "pp"), _add_folder),
    **dict.fromkeys(("home", "virtualenv", "venv", "pyhome", "H"), _set_venv),
    "env": _add_env,
    **dict.fromkeys(("touch-reload", "touch-workers-reload", "touch-chain-reload"), _set_touch),
    **dict.fromkeys(("py-auto-reload", "py-autoreload", "python-auto-reload", "python-autoreload"), _set_watch),
    **dict.fromkeys(("reload-on-rss", "evil-reload-on-rss"), _set_rss),
    **dict.fromkeys((*_PLAIN, "https", "https-socket"), _add_bind),
    **dict.fromkeys(("uid", "gid"), _set_user),
    "cheap": _set_lazy,
    "pidfile": _set_pidfile,
    **dict.fromkeys(("procname", "procname-prefix", "procname-prefix-spaced"), _set_proc_name),
    **dict.fromkeys(("logto", "logto2", "logger", "daemonize"), _set_log),
    **dict.fromkeys(("disable-logging", "L"), _set_no_access_log),
    **dict.fromkeys(("static-map", "static-map2"), _add_files),
}
