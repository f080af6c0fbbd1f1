"""The TLS context, made in gunicorn's master: the workers have it in common, and need not be able to read the key."""

from __future__ import annotations

import ssl
from typing import Any

from gunicorn.sock import ssl_context


class ContextError(Exception):
    """gunicorn's settings give no TLS context; the text says which of them and why."""


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
