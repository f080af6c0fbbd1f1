"""Keeps a million more objects with each request to /more."""

kept = []


def application(environ, start_response):
    if environ["PATH_INFO"] == "/more":
        kept.append([[number] for number in range(1_000_000)])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]
