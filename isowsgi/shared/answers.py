"""isowsgi's own answers, in one form: what clients get when no app answers them.

Each closes its connection, and is short enough to be sent in one call that does not wait.
"""

from __future__ import annotations

# Told to clients with a 503: when to come again, in seconds. A mount that could not be loaded takes longer than one that is busy.
RETRY_SOON_S = 5
RETRY_LATER_S = 10

NOT_FOUND = "404 Not Found"
TOO_LATE = "408 Request Timeout"
BROKEN_OFF = "502 Bad Gateway"
UNAVAILABLE = "503 Service Unavailable"
TIMED_OUT = "504 Gateway Timeout"


# Redirects, by their numbers.
MOVED = {
    301: "301 Moved Permanently",
    302: "302 Found",
    303: "303 See Other",
    307: "307 Temporary Redirect",
    308: "308 Permanent Redirect",
}


def plain(status: str, text: str = "", retry_after_s: int | None = None) -> bytes:
    """Return an answer in plain text.

    Args:
        status: with its reason: "503 Service Unavailable".
        text: a sentence for people; without it, they get the status.
    """
    return _answer(status, "text/plain", f"{text or status}\n".encode(), retry_after_s)


def page(status: str, text: str, retry_after_s: int | None = None, location: str = "") -> tuple[bytes, int]:
    """Return an answer as a web page, and the length of its body.

    Args:
        location: where to go instead; no line end may be in it.
    """
    import html  # late: the apps' interpreters have no pages to make

    reason = status.partition(" ")[2]
    body = f"<!doctype html>\n<title>{status}</title>\n<h1>{reason}</h1>\n<p>{html.escape(text)}</p>\n".encode()
    return _answer(status, "text/html; charset=utf-8", body, retry_after_s, location), len(body)


def _answer(status: str, content_type: str, body: bytes, retry_after_s: int | None, location: str = "") -> bytes:
    place = f"Location: {location}\r\n" if location else ""
    retry = "" if retry_after_s is None else f"Retry-After: {retry_after_s}\r\n"
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\n{retry}{place}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
