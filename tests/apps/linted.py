"""Apps between WSGI's two checkers: any breach of PEP 3333 by the server, even one that is only worth a warning, is an exception."""

import warnings
from wsgiref.validate import validator

from werkzeug.middleware.lint import LintMiddleware

warnings.simplefilter("error")


def plain(environ, start_response):
    body = environ["wsgi.input"].read(100)
    for name in ("SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "REMOTE_ADDR"):
        assert environ[name], name
    environ["wsgi.errors"].write(f"linted: {environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n")
    environ["wsgi.errors"].writelines(["linted: a line\n"])
    environ["wsgi.errors"].flush()
    answer = b"%d bytes" % len(body)
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(answer)))])
    return [answer]


def reading(environ, start_response):
    body = environ["wsgi.input"]
    if environ["PATH_INFO"] == "/reading_lines":  # werkzeug's lint warns of that: not every server can
        answer = b"|".join([body.readline(), body.readline(2), *body.readlines()])
    else:
        answer = b"|".join([body.read(3), *body])
    write = start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    write(answer[:5])
    return iter([answer[5:]])


def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


def _by_path(environ, start_response):
    app = {"/reading": reading, "/reading_lines": reading, "/not_modified": not_modified}.get(environ["PATH_INFO"], plain)
    return app(environ, start_response)


validated = validator(_by_path)
linted = LintMiddleware(_by_path)
both = validator(LintMiddleware(_by_path))
