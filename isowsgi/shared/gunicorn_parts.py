"""Every name of gunicorn that isowsgi uses: most are outside gunicorn's public contract, and another major version may lack them.

The master checks them once, before the first fork (`isowsgi.Worker` calls `require`). Without that check a missing name would show as an
ImportError of each mount, after its trials. Code imports the names from gunicorn itself, where a reader looks for them;
tests/test_gunicorn_parts.py compares those imports with this table, in both directions.

What no table can hold is behaviour: that the master closes a worker's heartbeat file once it has reaped the worker, or what the parser
refuses. The test suite and `make conformance` show that for each version, and only then it joins TRIED.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import isowsgi

# Major versions for which the whole suite passes. pyproject.toml names the same range.
TRIED = (27,)

# Module -> names; "Class.name" is a member that is overridden, called or read. Attributes that an instance gets in `__init__` cannot be
# looked up on the class: `RequestParser.unreader` and `mesg`, `LengthReader.length`, `Unreader.buf`, `HeaderPolicy.cfg` and `peer_addr`.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gunicorn": ("SERVER",),
        "gunicorn.config": ("Config",),
        "gunicorn.errors": ("AppImportError",),
        "gunicorn.glogging": ("Logger", "Logger.access", "Logger.datefmt", "Logger.error_fmt", "Logger.reopen_files", "loggers"),
        "gunicorn.http.body": ("Body", "LengthReader"),
        "gunicorn.http.errors": (
            "ConfigurationProblem",
            "InvalidProxyHeader",
            "InvalidProxyLine",
            "InvalidResponseHeader",
            "InvalidResponseHeaderName",
            "LimitRequestHeaders",
            "NoMoreData",
            "ParseException",
        ),
        "gunicorn.http.message": (
            "DEFAULT_MAX_HEADERFIELD_SIZE",
            "HeaderPolicy",
            "HeaderPolicy._peer_trusted_for_forwarded",
            "MAX_HEADERS",
            "MAX_REQUEST_LINE",
            "PP_V2_SIGNATURE",
            "Request",
            "Request._handle_proxy_protocol",
            "Request.parse",
            "Request.set_body_reader",
            "Request.should_close",
            "TOKEN_RE",
        ),
        "gunicorn.http.parser": ("RequestParser", "RequestParser.finish_body"),
        "gunicorn.http.unreader": ("IterUnreader", "Unreader", "Unreader.chunk", "Unreader.read"),
        "gunicorn.http.wsgi": (
            "FileWrapper",
            "HEADER_VALUE_RE",
            "STATUS_RE",
            "_make_early_hints_callback",
            "base_environ",
            "create",
            "default_environ",
            "proxy_environ",
        ),
        "gunicorn.sock": ("ssl_context",),
        "gunicorn.instrument.statsd": ("Statsd",),
        "gunicorn.util": ("has_fileno", "hop_headers", "import_app", "load_class", "split_request_uri", "unquote_to_wsgi_str"),
        "gunicorn.workers.base": (
            "Worker",
            "Worker.PIPE",
            "Worker.handle_error",
            "Worker.handle_quit",
            "Worker.handle_usr1",
            "Worker.load_wsgi",
            "Worker.notify",
            "Worker.run",
        ),
        "gunicorn.workers.workertmp": ("WorkerTmp", "WorkerTmp.close"),
    }
)

# For messages: how a user gets a version that fits.
REQUIREMENT = f"gunicorn>={TRIED[0]},<{TRIED[-1] + 1}"


class Unfit(RuntimeError):
    """The gunicorn that is installed cannot serve; the text is one line. gunicorn prints a RuntimeError's text and exits with 1."""


def require() -> None:
    """Refuse a gunicorn of another major version, or one that lacks a name.

    Raises:
        Unfit
    """
    if (reason := unfit_reason()) is not None:
        raise Unfit(reason)


def unfit_reason() -> str | None:
    """Say in one line why the installed gunicorn cannot serve, and which versions can; None if it can."""
    try:
        gunicorn = importlib.import_module("gunicorn")
    except ImportError:
        return f"isowsgi {isowsgi.__version__} needs gunicorn, which is not installed: pip install '{REQUIREMENT}'"
    version = str(getattr(gunicorn, "__version__", "of an unknown version"))
    fits = f"isowsgi {isowsgi.__version__} works with gunicorn {', '.join(map(str, TRIED))}: pip install '{REQUIREMENT}'"
    if version.split(".")[0] not in map(str, TRIED):
        return f"gunicorn {version} is installed, and {fits}"
    missing = list(_missing())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"gunicorn {version} is installed, which has no {missing[0]}{more}; {fits}"
    return None


def _missing() -> Iterator[str]:
    for name, parts in PARTS.items():
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            yield name
            continue
        for part in parts:
            owner = module
            for step in part.split("."):
                owner = getattr(owner, step, _ABSENT)
            if owner is _ABSENT:
                yield f"{name}.{part}"


_ABSENT = object()
