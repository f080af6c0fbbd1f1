"""A script as mod_wsgi runs them: no package and no framework, only a callable named `application`.

It is mounted at "/", so it gets every path that no other mount has.
"""

import platform
from http import HTTPStatus

import page


def application(environ, start_response):
    # "/hello" too, for whoever tries the script's own name.
    status = HTTPStatus.OK if environ["PATH_INFO"].rstrip("/") in ("", "/hello", "/hello.wsgi") else HTTPStatus.NOT_FOUND
    content_type, text = page.render(environ, {platform.python_implementation(): platform.python_version()})
    if status is HTTPStatus.NOT_FOUND:
        content_type, text = "text/plain; charset=utf-8", f"hello.wsgi is at / only; other apps: {', '.join(page.LINKS[1:])}\n"
    body = text.encode()
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Vary", "Accept")]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
