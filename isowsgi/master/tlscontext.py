"""The TLS context, made in gunicorn's master: the workers have it in common, and need not be able to read the key."""

from __future__ import annotations

import os
import ssl
from typing import Any

from gunicorn.sock import ssl_context

from isowsgi.shared import certificates
from isowsgi.shared.certificates import Files, Pair


class ContextError(Exception):
    """gunicorn's settings give no TLS context; the text says which of them and why."""


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
