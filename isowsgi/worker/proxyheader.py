"""The PROXY protocol's header, which a proxy sends before a connection's first request: read by gunicorn's own parser."""

from __future__ import annotations

from typing import Any, NamedTuple

from gunicorn.http.errors import InvalidProxyHeader, InvalidProxyLine, NoMoreData
from gunicorn.http.message import PP_V2_SIGNATURE, Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import proxy_environ

from isowsgi.shared.peek import PEEK_MAX_BYTES

# Longest header of version 1, its CRLF included (section 2.1 of the protocol's text). gunicorn would read on.
_MAX_LINE_BYTES = 107


class Header(NamedTuple):
    """What came before a request.

    Attributes:
        length: of the header in bytes; 0 if there was none.
        environ: what it says, for the environ of every request on the connection.
    """

    length: int
    environ: dict[str, str]


class Reader:
    """Reads it by gunicorn's settings; called with what has come of a new connection.

    Args:
        cfg: gunicorn's.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def __call__(self, data: bytes, peer: Any) -> Header | None:
        """Return the header, or None if it is not complete.

        Raises:
            gunicorn.http.errors.ParseException: it is not valid, or the client must not send one.
        """
        try:
            parsed = _Parsed(self._cfg, IterUnreader([data]), peer)
        except NoMoreData as exc:
            if data.startswith(b"PROXY ") and len(data) >= _MAX_LINE_BYTES:
                raise InvalidProxyLine(data[:_MAX_LINE_BYTES].decode("latin-1")) from exc
            if data.startswith(PP_V2_SIGNATURE) and len(data) >= PEEK_MAX_BYTES:
                raise InvalidProxyLine("the header of version 2 is too long") from exc
            return None
        except InvalidProxyHeader as exc:  # for this one gunicorn answers 500, and logs a traceback
            raise InvalidProxyLine(exc.msg) from exc
        except ValueError as exc:  # a NUL in an address; gunicorn's parser does not expect it
            raise InvalidProxyLine(str(exc)) from exc
        # For a connection of the proxy's own (LOCAL, UNSPEC) gunicorn gives None and "None" as addresses: the socket's are true then.
        environ = {name: value for name, value in proxy_environ(parsed).items() if value not in (None, "None")}
        return Header(len(data) - parsed.rest, environ)


class _Parsed(Request):  # type: ignore[misc] # gunicorn is not annotated
    """As much of a request as its PROXY header."""

    def __init__(self, cfg: Any, unreader: Any, peer: Any) -> None:
        self.rest = 0
        super().__init__(cfg, unreader, peer, 1)

    def parse(self, unreader: Any) -> bytes:
        buffer = bytearray(unreader.read())
        self.rest = len(self._handle_proxy_protocol(unreader, buffer, self.cfg.proxy_protocol))
        return b""

    def set_body_reader(self) -> None:
        return
