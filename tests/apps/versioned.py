"""Says which mount it is, in which version, on which host, and who asks."""

import os


def application(environ, start_response):
    environ["wsgi.input"].read()
    body = f"{environ['SCRIPT_NAME']} {os.environ['VERSION']} {os.environ['WEB']} {environ['REMOTE_ADDR']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
