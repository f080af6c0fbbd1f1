"""What becomes of each gunicorn setting: honoured, refused, or ignored with a warning; none is dropped silently.

The table SETTINGS is the one place that knows. `check` says what a configuration asks for and will not get, and tools/settings_page.py
draws the page of the docs. A test walks gunicorn's own list. What crosses into an app's interpreter is made by `crossing`.

Pure: reads a gunicorn Config and no file. It does not import gunicorn either, so that the table can be read without it. The Config
is typed Any for that reason, and because gunicorn carries no types.
"""

import enum
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from isowsgi.configuration import crossing


class Handling(enum.Enum):
    """What isowsgi does with a gunicorn setting."""

    HONOURED = "honoured"
    REFUSED = "refused"  # the server does not start: what was asked for matters and would not happen
    IGNORED = "ignored"  # a warning, and on: it would have changed nothing here


@attrs.frozen(kw_only=True)
class Verdict:
    """What isowsgi does with one gunicorn setting, and why.

    Attributes:
        note: for users, in the voice of an error message (lower case, no full stop): what it does here, or why it cannot and what
            to do instead.
        refused_when: tells the values that are refused from the rest. None: every value but gunicorn's default if REFUSED, else none.
    """

    handling: Handling
    note: str
    refused_when: Callable[[Any], bool] | None = None

    def refuses(self, value: object) -> bool:
        """Tell whether a value that is not gunicorn's default is refused."""
        if self.refused_when is not None:
            return self.refused_when(value)
        return self.handling is Handling.REFUSED


def _honoured(note: str, *, refused_when: Callable[[Any], bool] | None = None) -> Verdict:
    return Verdict(handling=Handling.HONOURED, note=note, refused_when=refused_when)


def _refused(note: str, *, refused_when: Callable[[Any], bool] | None = None) -> Verdict:
    return Verdict(handling=Handling.REFUSED, note=note, refused_when=refused_when)


def _ignored(note: str) -> Verdict:
    return Verdict(handling=Handling.IGNORED, note=note)


_TLS_FILE = "read by gunicorn's master at start and on SIGHUP; if it cannot be used on SIGHUP, the previous one is kept"
_CERTIFICATE = f"{_TLS_FILE}; a renewed one is also taken up by `isowsgi apply`"
_CLIENT_CERTIFICATE = (
    "refused without TLS; apps find the client's certificate in SSL_CLIENT_CERT and SSL_CLIENT_S_DN, as mod_ssl names them"
)
_HTTP2 = "one HTTP/2 connection may carry requests for several mounts, and only HTTP/1 can be routed; speak HTTP/2 in a proxy in front"
_NO_HTTP2 = "without effect, since isowsgi does not speak HTTP/2; set it in the proxy in front"
_PASTE = "PasteDeploy loads one app for the whole server; name the apps in isowsgi's config file instead"
_REQUEST_HOOK = "the hook lives in the main interpreter and the request in its app's; wrap the app in a WSGI middleware instead"
_ASGI = "for ASGI apps only, and isowsgi serves WSGI apps"
_ARBITER_HOOK = "called by gunicorn's master, as usual"
_WORKER_HOOK = "called in the worker's main interpreter, where none of the apps can be seen"
_DIRTY = "the dirty arbiter and its workers are processes of gunicorn's own, which isowsgi leaves as they are"
_TRUST = "obeyed by the parser in each app's interpreter, the same for all mounts"
_POLICY = "obeyed by gunicorn's parser, which runs in each app's interpreter, the same for all mounts"
_HEAD_LIMIT = "obeyed by gunicorn's parser; besides, a head that does not fit into 64 KiB is answered 431 before it reaches an app"
_IMPORTS_APP = "works with isowsgi.toml and with 'isowsgi:config(\"path\")'; gunicorn cannot import any other path"
_LOG = "obeyed by the logger of every interpreter"
_LOG_FILE = "one file for all mounts, opened for appending by every interpreter and reopened on USR1"
_LOG_CONFIG = "applied in every interpreter, so a file that rotates itself would be rotated by all of them: rotate from outside, with USR1"
_CONTROL = "the control socket belongs to gunicorn's master, which knows workers and not mounts; for these there is isowsgi status"

# Grouped and ordered as in gunicorn's own list; the comments are its sections.
SETTINGS: Mapping[str, Verdict] = MappingProxyType(
    {
        # Config File
        "config": _honoured("gunicorn's own conf file; the mounts are in isowsgi's config file, not in this one"),
        "wsgi_app": _honoured("names isowsgi's config file, as the positional argument does: a path, or 'isowsgi:config(\"path\")'"),
        # Server Socket
        "bind": _honoured("several addresses, Unix sockets and inherited sockets included; every mount is reachable through each"),
        "backlog": _honoured("passed to the kernel by gunicorn's master"),
        # Worker Processes
        "workers": _honoured(
            "each worker holds every mount: memory is workers times mounts; with own GILs one worker uses several cores; 0 is refused, "
            "as nothing would be served",
            refused_when=lambda value: value == 0,
        ),
        "worker_class": _honoured("set to isowsgi.Worker, or isowsgi does not run at all"),
        "threads": _honoured("default number of threads of a mount when above 1; a mount's own threads wins"),
        "worker_connections": _honoured(
            "cap on the open connections of a worker, over all mounts; 0 is refused, as no connection would be accepted",
            refused_when=lambda value: value == 0,
        ),
        "max_requests": _honoured("counted over all mounts of a worker and looked at once a second, so a few more may be served"),
        "max_requests_jitter": _honoured("added to max_requests, as usual"),
        "timeout": _honoured("heartbeat of the acceptor, not a limit on the time of a request: a stuck app does not stop the heartbeat"),
        "graceful_timeout": _honoured("time the requests of all mounts get to finish when a worker stops"),
        "keepalive": _honoured("seconds an idle connection stays open, whichever mount it served last; 0 closes after each response"),
        "asgi_loop": _ignored(_ASGI),
        "asgi_lifespan": _ignored(_ASGI),
        "asgi_disconnect_grace_period": _ignored(_ASGI),
        "websocket_max_message_size": _ignored(_ASGI),
        "http_parser": _honoured(
            "gunicorn's Python parser serves for auto and python; fast is refused, since gunicorn_h1c loads in no interpreter "
            "with a GIL of its own, and only once in a process",
            refused_when=lambda value: value == "fast",
        ),
        # Security
        "limit_request_line": _honoured(_HEAD_LIMIT),
        "limit_request_fields": _honoured(_HEAD_LIMIT),
        "limit_request_field_size": _honoured(_HEAD_LIMIT),
        # Debugging
        "reload": _honoured(
            "watches the config file, the scripts and the modules the apps had loaded at start; a change restarts the worker"
        ),
        "reload_engine": _honoured("chooses how reload watches files"),
        "reload_extra_files": _honoured("watched together with the files that reload finds itself"),
        "spew": _ignored("gunicorn traces the main thread of the main interpreter; the apps' interpreters are not traced"),
        "check_config": _honoured(_IMPORTS_APP),
        "print_config": _honoured(_IMPORTS_APP),
        # Server Mechanics
        "preload_app": _ignored("apps load in interpreters that must not exist before the fork; leave it out"),
        "sendfile": _honoured("used for wsgi.file_wrapper; as in gunicorn, any value set here turns it off, and so does SENDFILE=0"),
        "reuse_port": _honoured("each worker then has listening sockets of its own"),
        "chdir": _honoured("one working directory for the whole process: an app that changes it changes it for all mounts"),
        "daemon": _honoured("gunicorn detaches before it forks a worker"),
        "raw_env": _honoured("in the environment of every app, but of one with its own user; a mount's own env wins"),
        "pidfile": _honoured("written by gunicorn's master"),
        "worker_tmp_dir": _honoured("folder of the worker's heartbeat file"),
        "user": _honoured("the worker's, and so that of all mounts but those with their own user"),
        "group": _honoured("the worker's, and so that of all mounts but those with their own user"),
        "umask": _honoured("as in gunicorn, for its Unix sockets and heartbeat files"),
        "initgroups": _honoured("applied when the worker starts, before any app loads"),
        "tmp_upload_dir": _ignored("nothing in gunicorn reads it; an app chooses its own temporary folder"),
        "secure_scheme_headers": _honoured(_TRUST),
        "forwarded_allow_ips": _honoured(_TRUST),
        "pythonpath": _honoured("put on the sys.path of every app, behind the mount's own pythonpath"),
        "paste": _refused(_PASTE),
        "proxy_protocol": _honoured(
            "read before a connection's first request, within TLS if there is any; what it says holds for every request on the connection"
        ),
        "proxy_allow_ips": _honoured("a PROXY header from any other address is answered 403"),
        "protocol": _refused("only HTTP can be routed; with nginx use proxy_pass in place of uwsgi_pass"),
        "uwsgi_allow_ips": _ignored("without effect, since the uwsgi protocol is refused; with nginx use proxy_pass"),
        "raw_paste_global_conf": _refused(_PASTE),
        "permit_obsolete_folding": _honoured(_POLICY),
        "strip_header_spaces": _honoured(_POLICY),
        "permit_unconventional_http_method": _honoured(_POLICY),
        "permit_unconventional_http_version": _honoured(_POLICY),
        "casefold_http_method": _honoured(_POLICY),
        "forwarder_headers": _honoured(_TRUST),
        "header_map": _honoured(_POLICY),
        "root_path": _ignored("for ASGI apps only; an app finds the prefix of its mount in SCRIPT_NAME"),
        # Logging
        "accesslog": _honoured(_LOG_FILE),
        "disable_redirect_access_to_syslog": _honoured(_LOG),
        "access_log_format": _honoured(_LOG),
        "errorlog": _honoured(_LOG_FILE),
        "loglevel": _honoured(_LOG),
        "capture_output": _honoured("for output of the main interpreter; what apps print reaches the error log whether this is set or not"),
        "logger_class": _honoured(
            "loaded by its import string in every interpreter; an app that cannot import it gets gunicorn's own and a warning; "
            "a class defined in the conf file is refused"
        ),
        "logconfig": _honoured(_LOG_CONFIG),
        "logconfig_dict": _honoured(
            "applied in every interpreter; refused if it holds anything but text, numbers, lists and tables: name classes by import string"
        ),
        "logconfig_json": _honoured(_LOG_CONFIG),
        "syslog_addr": _honoured(_LOG),
        "syslog": _honoured(_LOG),
        "syslog_prefix": _honoured(_LOG),
        "syslog_facility": _honoured(_LOG),
        "enable_stdio_inheritance": _honoured("for gunicorn's own streams in daemon mode"),
        "statsd_host": _honoured("every interpreter sends through a socket of its own; the metrics' names do not tell the mounts apart"),
        "dogstatsd_tags": _honoured("the same tags for all mounts"),
        "statsd_prefix": _honoured("the same prefix for all mounts"),
        "enable_backlog_metric": _honoured("measured by gunicorn's master"),
        # Process Naming
        "proc_name": _honoured("name of the processes, and of the program in syslog; interpreters have no name in ps"),
        "default_proc_name": _honoured("used when proc_name is not set; gunicorn makes it the positional argument"),
        # Server Hooks
        "on_starting": _honoured(_ARBITER_HOOK),
        "on_reload": _honoured(_ARBITER_HOOK),
        "when_ready": _honoured(_ARBITER_HOOK),
        "pre_fork": _honoured(_ARBITER_HOOK),
        "post_fork": _honoured(_WORKER_HOOK),
        "post_worker_init": _honoured(_WORKER_HOOK),
        "worker_int": _honoured(_WORKER_HOOK),
        "worker_abort": _honoured(_WORKER_HOOK),
        "pre_exec": _honoured(_ARBITER_HOOK),
        "pre_request": _refused(_REQUEST_HOOK),
        "post_request": _refused(_REQUEST_HOOK),
        "child_exit": _honoured(_ARBITER_HOOK),
        "worker_exit": _honoured(_WORKER_HOOK),
        "nworkers_changed": _honoured(_ARBITER_HOOK),
        "on_exit": _honoured(_ARBITER_HOOK),
        "ssl_context": _honoured(
            "called once for each certificate, at start and on SIGHUP, in the master, and by each worker for a renewed one; "
            "not for each connection"
        ),
        # SSL
        "keyfile": _honoured(_CERTIFICATE),
        "certfile": _honoured(_CERTIFICATE),
        "ssl_version": _ignored("gunicorn itself no longer reads it; set minimum_version in the ssl_context hook"),
        "cert_reqs": _honoured(_CLIENT_CERTIFICATE),
        "ca_certs": _honoured(_TLS_FILE),
        "suppress_ragged_eofs": _honoured(
            "if off, a connection that ends without closing its TLS session is dropped, even with a request in flight"
        ),
        "do_handshake_on_connect": _ignored("the handshake begins with the client's first byte and never occupies a thread"),
        "ciphers": _honoured("for TLS 1.2, as usual; those of 1.3 are OpenSSL's"),
        # HTTP/2
        "http_protocols": _refused(_HTTP2, refused_when=lambda value: "h2" in value),
        "http2_cleartext": _refused(_HTTP2),
        "http2_max_concurrent_streams": _ignored(_NO_HTTP2),
        "http2_initial_window_size": _ignored(_NO_HTTP2),
        "http2_max_frame_size": _ignored(_NO_HTTP2),
        "http2_max_header_list_size": _ignored(_NO_HTTP2),
        # Dirty Arbiters
        "dirty_apps": _honoured(_DIRTY),
        "dirty_workers": _honoured(_DIRTY),
        "dirty_timeout": _honoured(_DIRTY),
        "dirty_threads": _honoured(_DIRTY),
        "dirty_graceful_timeout": _honoured(_DIRTY),
        # Dirty Arbiter Hooks
        "on_dirty_starting": _honoured("called by gunicorn's dirty arbiter, as usual"),
        "dirty_post_fork": _honoured("called in gunicorn's dirty worker, as usual"),
        "dirty_worker_init": _honoured("called in gunicorn's dirty worker, as usual"),
        "dirty_worker_exit": _honoured("called in gunicorn's dirty worker, as usual"),
        # Control
        "control_socket": _honoured(_CONTROL),
        "control_socket_mode": _honoured(_CONTROL),
        "control_socket_disable": _honoured(_CONTROL),
    }
)


def check(cfg: Any) -> tuple[list[str], list[str]]:
    """Return what a gunicorn Config asks for and will not get, as (refusals, warnings).

    Each is one line that names the setting. With any refusal the server must not start. Settings at gunicorn's default are never
    named, nor those that a conf file sets to what the default is anyway.
    """
    refusals: list[str] = []
    warnings: list[str] = []
    for name, setting in cfg.settings.items():
        verdict = SETTINGS.get(name)
        if verdict is not None and verdict.handling is Handling.HONOURED and verdict.refused_when is None:
            continue
        value = setting.get()
        if _is_default(setting, value):
            continue
        if verdict is None:
            warnings.append(f"gunicorn setting {name}: not known to this isowsgi, got {crossing.shown(value)}: it may have no effect")
        elif verdict.refuses(value):
            refusals.append(f"gunicorn setting {name}: refused, got {crossing.shown(value)}: {verdict.note}")
        elif verdict.handling is Handling.IGNORED:
            warnings.append(f"gunicorn setting {name}: ignored, got {crossing.shown(value)}: {verdict.note}")
    refusals.extend(crossing.faults(cfg))
    return refusals, warnings


def _is_default(setting: Any, value: object) -> bool:
    # A fresh setting, not the class attribute `default`: that one is what the validator is fed ("127.0.0.1,::1", not the list of
    # it), and for hooks a staticmethod. A validator hands the very function on, so a hook left alone is the identical object.
    default = type(setting)().get()
    if callable(value) or callable(default):
        return value is default
    return bool(value == default)
