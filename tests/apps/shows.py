"""Answers with what it was called with, byte for byte comparable: on isowsgi, and on another server that knows nothing of mounts."""

import json
import socket

# What a client asks for in X-Read; all of the body if it asks for nothing.
READS = {
    "nothing": lambda body: b"",
    "a part": lambda body: body.read(2),
    "lines": lambda body: b"".join(iter(body.readline, b"")),
}

PREFIX = "/mounted"


def application(environ, start_response):
    """The environ but for what only isowsgi has, and the body. A fault in the body is the server's to answer, as with most apps."""
    facts = {key: _shown(value) for key, value in environ.items() if not key.startswith("isowsgi.")}
    del facts["wsgi.errors"]  # isowsgi has a stream of its own
    del facts["wsgi.multiprocess"]  # true in a child process
    facts["body"] = READS.get(environ.get("HTTP_X_READ"), lambda body: body.read())(environ["wsgi.input"]).decode("latin-1")
    page = (json.dumps(facts, indent=0, sort_keys=True) + "\n").encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(page)))])
    return [page]


def dispatched(environ, start_response):
    """The same behind a dispatcher that knows the mounts `/` and `/mounted`, as docs/reference/paths.md has it."""
    path = environ["PATH_INFO"]
    if path == PREFIX or path.startswith(PREFIX + "/"):
        environ["SCRIPT_NAME"] += PREFIX
        environ["PATH_INFO"] = path[len(PREFIX) :]
    return application(environ, start_response)


def _shown(value):
    if isinstance(value, (str, bool, int, tuple)):
        return value
    if isinstance(value, socket.socket):
        return "socket"  # a subclass will do
    return "callable" if callable(value) else type(value).__name__
