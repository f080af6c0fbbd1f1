"""The smallest app, and one that says what it was called with."""

import json
import os
import sys
import threading


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world\n"]


def environ(environ, start_response):
    """All text entries of the environ, and some facts of the place, as JSON."""
    facts = {key: value for key, value in environ.items() if isinstance(value, (str, bool, int))}
    facts["pid"] = os.getpid()
    facts["thread"] = threading.current_thread().name
    facts["sys.path"] = sys.path
    facts["body"] = environ["wsgi.input"].read().decode("latin-1")
    body = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
