"""Takes as long as it is asked to, in one of three ways; says so if it is interrupted although it had time left.

`/?<seconds>,<how>,<sent>,<name>` is answered with the query string. `sent` is when the client sent it, by the monotonic clock: the time
of a request begins later, and on a busy machine this app begins later still.
"""

from __future__ import annotations

import time
from typing import Any

from isowsgi.inside.deadlines import RequestTimeout

LIMIT_S = 0.5  # the mount's request_timeout


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    took, how, sent, _ = environ["QUERY_STRING"].split(",")
    end = time.monotonic() + float(took)
    try:
        if how == "sleep":
            time.sleep(float(took))
        while time.monotonic() < end:
            if how == "nap":
                time.sleep(0.001)
    except RequestTimeout:
        if time.monotonic() - float(sent) < 0.9 * LIMIT_S:
            print("WRONGLY INTERRUPTED", environ["QUERY_STRING"], flush=True)
        raise
    body = environ["QUERY_STRING"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
