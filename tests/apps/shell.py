"""Runs the Python source in a request's body, and answers as JSON what it assigned to `answer`."""

import json
import textwrap


def application(environ, start_response):
    names = {"environ": environ, "answer": None}
    source = textwrap.dedent(environ["wsgi.input"].read().decode())
    exec(compile(source, "<the request's body>", "exec"), names)
    body = json.dumps(names["answer"]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
