"""The TLS context, made in gunicorn's master: the workers have it in common, and need not be able to read the key."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gunicorn.sock import ssl_context

from isowsgi.configuration import Config
from isowsgi.configuration import certificates as named
from isowsgi.shared import certificates
from isowsgi.shared.certificates import Files, Pair


class ContextError(Exception):
    """gunicorn's settings give no TLS context; the text says which of them and why."""


class Ready(NamedTuple):
    """A certificate that connections can be served with.

    Attributes:
        digest: of the certificate; "" if it may be one of two.
        expires: seconds since the epoch; None if that is not known.
    """

    context: ssl.SSLContext
    digest: str
    expires: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the master has read of all certificates. All workers have its contexts in common, and so each can take up sessions that
    another one began.

    Attributes:
        number: of this reading; a renewed certificate counts only as long as it replaces one of it.
        own: by gunicorn's settings; None: they name none, and the first of the `[[tls]]` tables is for other hosts too.
        files: where that one is; None also if only the user's `ssl_context` knows.
        ready: by files, that one and those of `[[tls]]` that can be used.
    """

    number: int
    own: ssl.SSLContext | None
    files: Files | None
    ready: Mapping[Files, Ready]


def read(cfg: Any, config: Config, shown: str, before: Reading | None, number: int) -> tuple[Reading | None, list[str], list[str]]:
    """Read all certificates; return them, None if there is none, and what is wrong with those of `[[tls]]`, and what clients will not like.

    Args:
        shown: the config file, as faults name it.
        before: the last reading, of which what cannot be read now is kept.
        number: of this one.

    Raises:
        ContextError: gunicorn's own cannot be used, or none.
    """
    ready: dict[Files, Ready] = {}
    own = files = None
    if cfg.is_ssl:
        files = files_of(cfg) if cfg.certfile else None  # else the user's `ssl_context` has its own
        digest = certificates.digest_of(files.certificate) if files else None
        own = make_context(cfg)
        if files:
            # If it was renewed in between, nobody knows which of both this is: then `isowsgi apply` takes up the new one.
            if certificates.digest_of(files.certificate) != digest:
                digest = None
            ready[files] = Ready(own, digest or "", certificates.expiry_of(files))
    faults: list[str] = []
    warnings: list[str] = []
    for index, each in enumerate(config.tls):
        place = named.files_of(each)
        found = named.look(each, index, shown)
        fault = found.fault
        try:
            if found.pair is not None:
                ready[place] = Ready(renewed(cfg, found.pair), found.pair.digest, found.facts and found.facts.expires)
        except ContextError as exc:
            fault = f"{shown}: tls[{index}]: {exc}"
        warnings += found.warnings
        if fault:
            kept = before.ready.get(place) if before is not None else None
            faults.append(f"{fault}; keeping the one before it" if kept else fault)
            ready |= {place: kept} if kept else {}
    if own is None and not config.tls:
        return None, [], []
    if own is None and not ready:
        raise ContextError("\n".join(faults))
    return Reading(number=number, own=own, files=files, ready=ready), faults, warnings


class _With:
    """gunicorn's settings with other files for the certificate; the user's `ssl_context` gets them too."""

    def __init__(self, cfg: Any, files: Files) -> None:
        self._cfg = cfg
        self.certfile, self.keyfile = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


def renewed(cfg: Any, pair: Pair) -> ssl.SSLContext:
    """Return a context as gunicorn's settings ask for it, with another certificate.

    Raises:
        ContextError: it cannot be used.
    """
    with certificates.as_files(pair) as files:
        return make_context(_With(cfg, files))


def files_of(cfg: Any) -> Files:
    """Return where the certificate is; the key may be in the same file."""
    return Files(os.path.abspath(cfg.certfile), os.path.abspath(cfg.keyfile or cfg.certfile))


def make_context(cfg: Any) -> ssl.SSLContext:
    """Return the TLS context that gunicorn's settings ask for, by its own code.

    Raises:
        ContextError: they ask for what cannot be.
    """
    for name in ("certfile", "keyfile", "ca_certs"):
        path = getattr(cfg, name)
        try:
            if path:
                open(path, "rb").close()
        except OSError as exc:
            raise ContextError(f"gunicorn setting {name}: cannot read {path!r}: {exc.strerror}") from exc
    try:
        context: ssl.SSLContext = ssl_context(cfg)
        # Renegotiation, which TLS 1.3 no longer has, costs the server far more than the client that asks for it, and would let a write
        # wait for a read. OpenSSL 3 refuses it anyway.
        context.options |= ssl.OP_NO_RENEGOTIATION
    except Exception as exc:  # the user's `ssl_context` may raise anything
        files = f"certfile {cfg.certfile!r}, keyfile {cfg.keyfile!r}"
        raise ContextError(f"gunicorn's TLS settings: cannot make a TLS context from {files}: {type(exc).__name__}: {exc}") from exc
    return context
