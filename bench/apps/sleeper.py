"""Waits as for a database, without a GIL: a thread is what such a request costs."""

import time

SLEEP_S = 0.1


def application(environ, start_response):
    time.sleep(SLEEP_S)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"rest"]
