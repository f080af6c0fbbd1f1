"""The settings of gunicorn that cross into an app's interpreter: a copy as JSON, and what cannot be passed there.

Pure, as `gunicorn_settings`, and without an import of gunicorn for the same reason.
"""

import inspect
import json
import os
import sys
from typing import Any

# The settings that code running inside an interpreter reads, in gunicorn 27: found by reading, and held by a test that reads
# the same files. Those that are not passed as they stand are made in `snapshot`.
_PARSER = (  # gunicorn.http: message, parser
    "casefold_http_method",
    "forwarded_allow_ips",
    "forwarder_headers",
    "header_map",
    "limit_request_field_size",
    "limit_request_fields",
    "limit_request_line",
    "permit_obsolete_folding",
    "permit_unconventional_http_method",
    "permit_unconventional_http_version",
    "protocol",
    "proxy_allow_ips",
    "secure_scheme_headers",
    "strip_header_spaces",
)
_RESPONSE = ("workers",)  # gunicorn.http.wsgi, for wsgi.multiprocess
_LOGGER = (  # gunicorn.glogging.Logger, gunicorn.instrument.statsd.Statsd
    "access_log_format",
    "disable_redirect_access_to_syslog",
    "dogstatsd_tags",
    "group",
    "logconfig_dict",
    "loglevel",
    "statsd_prefix",
    "syslog",
    "syslog_addr",
    "syslog_facility",
    "syslog_prefix",
    "user",
)

_DEFAULT_LOGGER = "gunicorn.glogging.Logger"
_STATSD_LOGGER = "gunicorn.instrument.statsd.Statsd"


def faults(cfg: Any) -> list[str]:
    """Return a line for each value that an app's interpreter needs and that cannot be passed there.

    These three are honoured settings that a conf file may give an object; the validators of all others let only text and numbers by.
    """
    found = []
    fault = _logger_fault(cfg.settings["logger_class"].get())
    if fault is not None:
        found.append(f"gunicorn setting logger_class: {fault}")
    for name in ("logconfig_dict", "secure_scheme_headers"):
        fault = _json_fault(cfg.settings[name].get(), name)
        if fault is not None:
            found.append(f"gunicorn setting {fault}")
    return found


def _logger_fault(value: object) -> str | None:
    # gunicorn executes the conf file as module __config__. Nobody can import that, other interpreters least of all.
    advice = "move the class to the top level of a module that every app can import"
    if isinstance(value, str) and value.startswith("__config__."):
        return f"must not be defined in the conf file, which no app's interpreter can import, got {value!r}; {advice}"
    if not isinstance(value, type):
        return None
    if value.__module__ in ("__config__", "__main__"):
        return f"must not be defined in the conf file, which no app's interpreter can import, got class {value.__qualname__}; {advice}"
    if getattr(sys.modules.get(value.__module__), value.__qualname__, None) is not value:
        return f"must be importable by name, got class {value.__module__}.{value.__qualname__}; {advice}"
    return None


def _json_fault(value: object, place: str) -> str | None:
    """Return "place: what is wrong" for the first part of a value that JSON would lose, or None.

    Tuples pass and arrive as lists, which logging's dictConfig takes alike. Keys that are not text do not: JSON makes text of them.
    """
    if value is None or isinstance(value, str | int | float):
        return None
    if isinstance(value, list | tuple):
        faults = (_json_fault(item, f"{place}[{index}]") for index, item in enumerate(value))
        return next((fault for fault in faults if fault is not None), None)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"{place}: keys must be text, to pass into the apps' interpreters, got {key!r}"
            fault = _json_fault(item, f"{place}[{key!r}]")
            if fault is not None:
                return fault
        return None
    return (
        f"{place}: must be text, a number, a list or a table, to pass into the apps' interpreters, got {shown(value)}; "
        "give the import string of an object in its place"
    )


def shown(value: object) -> str:
    # As `gunicorn --print-config` shows a hook: the address in a function's repr tells a reader nothing.
    if callable(value):
        return f"{getattr(value, '__qualname__', type(value).__qualname__)}()"
    return repr(value)


def snapshot(cfg: Any, has_tls: bool = False) -> dict[str, Any]:
    """Copy the settings that an app's interpreter needs, as values that come back from JSON unchanged.

    Make it from a Config that `gunicorn_settings.check` found no fault with, in the main interpreter; `isowsgi.inside.settings.Settings`
    is built from it on the other side.

    Args:
        has_tls: whether clients come by TLS although gunicorn's settings name no certificate.

    Raises:
        TypeError: a value cannot be expressed in JSON; `faults` would have named it.
    """
    values = {name: getattr(cfg, name) for name in (*_PARSER, *_RESPONSE, *_LOGGER)}

    # gunicorn_h1c, the parser behind "auto" and "fast", is a single-phase C extension: it loads in no interpreter with a GIL of its own,
    # and in only one of those that share a GIL. With "auto" one mount would be parsed by other code than its neighbour, and the
    # failing import be retried in each interpreter.
    values["http_parser"] = "python"

    # The acceptor reads the header that comes before the first request, with gunicorn's own Config. To take a second one here would let a
    # client say where it comes from.
    values["proxy_protocol"] = "off"

    # gunicorn's Config computes these three. is_ssl is the name of a file there; SENDFILE in the environment counts for sendfile.
    values["is_ssl"] = bool(cfg.is_ssl) or has_tls
    values["sendfile"] = cfg.sendfile
    values["proc_name"] = cfg.proc_name

    # The process has raw_env in its environment already, from which each app's is made.
    values["env"] = {}

    # The dup2 on file descriptors 1 and 2 is for the process. The main interpreter's logger has done it and repeats it on USR1.
    values["capture_output"] = False

    # The working directory belongs to the process: by the time an interpreter opens its logs an app may have changed it.
    for name in ("errorlog", "accesslog", "logconfig", "logconfig_json"):
        values[name] = _absolute(getattr(cfg, name), cfg.chdir)
    host = cfg.statsd_host
    values["statsd_host"] = _absolute(host, cfg.chdir) if isinstance(host, str) else host

    values["logger_class"] = _logger_name(cfg)

    copied: dict[str, Any] = json.loads(json.dumps(values))
    return copied


def _absolute(path: str | None, folder: str) -> str | None:
    if not path or path == "-":
        return path
    return os.path.join(folder, path)


def _logger_name(cfg: Any) -> str:
    """Return the logger class as the dotted name that gunicorn.util.load_class takes, chosen as Config.logger_class does."""
    value = cfg.settings["logger_class"].get()
    if inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    if value not in ("simple", _DEFAULT_LOGGER):
        return str(value)
    return _DEFAULT_LOGGER if cfg.statsd_host is None else _STATSD_LOGGER
