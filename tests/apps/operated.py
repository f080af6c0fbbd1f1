"""Prints and does what the path says, for tests of what an operator sees. `/spin` and `/sleep` end when there is a file at GATE."""

import os
import time


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/spin":
        print("spins")
        while True:
            if has_gate():
                break
    if path == "/sleep":
        print("sleeps")
        while not has_gate():
            time.sleep(0.25)
    if path == "/raise":
        raise LookupError("no such thing \x1b[31m")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def has_gate():
    return os.path.exists(os.environ.get("GATE", "/nonexistent"))
