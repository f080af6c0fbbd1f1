"""Reads the request's body in the ways that wsgi.input allows: `/name` calls the function of that name."""

import json


def application(environ, start_response):
    read = environ["wsgi.input"]
    answer = globals()[environ["PATH_INFO"].strip("/")](read, environ)
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def whole(body, environ):
    return body.read().decode("latin-1")


def length(body, environ):
    return len(body.read())


def in_pieces(body, environ):
    """read(0), read(3), read(None), and read() at the end, where every call returns nothing."""
    return [piece.decode("latin-1") for piece in (body.read(0), body.read(3), body.read(None), body.read(), body.read(5), body.readline())]


def more_than_there_is(body, environ):
    return body.read(1000).decode("latin-1")


def by_line(body, environ):
    return [line.decode("latin-1") for line in iter(body.readline, b"")]


def by_short_lines(body, environ):
    return [line.decode("latin-1") for line in iter(lambda: body.readline(4), b"")]


def by_iteration(body, environ):
    return [line.decode("latin-1") for line in body]


def lines(body, environ):
    return [line.decode("latin-1") for line in body.readlines()]


def mixed(body, environ):
    return [piece.decode("latin-1") for piece in (body.readline(), body.read(2), body.readline(), body.read())]


def unread(body, environ):
    return [environ["wsgi.input_terminated"], environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING")]


def half_read(body, environ):
    return body.read(4).decode("latin-1")
