"""Reads what it is sent, and answers with 10 MiB in one piece: more than the socket buffers of both sides hold, so the thread waits for
the client to read."""

_BODY = b"x" * (10 * 1024 * 1024)


def application(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(_BODY)))])
    return [_BODY]
