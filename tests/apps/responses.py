"""Responses of every kind that PEP 3333 allows, and some that it forbids: `/name` calls the function of that name."""

import sys
import threading

TEXT = ("Content-Type", "text/plain")
released = threading.Event()


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/")](environ, start_response)


def listed(environ, start_response):
    start_response("200 OK", [TEXT, ("Content-Length", "6")])
    return [b"listed"]


def empty(environ, start_response):
    start_response("200 Nothing To Say", [TEXT])
    return []


def replaces_the_head(environ, start_response):
    start_response("200 OK", [TEXT, ("Content-Length", "4"), ("X-First", "1")])
    try:
        raise LookupError("found out before the head was sent")
    except LookupError:
        start_response("500 Found Out", [TEXT, ("X-Second", "2")], sys.exc_info())
    return [b"longer than four bytes"]


def replaces_the_head_after_empty_chunks(environ, start_response):
    start_response("200 OK", [TEXT])
    yield b""
    try:
        raise LookupError
    except LookupError:
        start_response("503 Found Out Late", [TEXT], sys.exc_info())
    yield b""
    yield b"sorry"


def is_too_late_to_replace_the_head(environ, start_response):
    start_response("200 OK", [TEXT])
    yield b"begun"
    try:
        raise LookupError("found out after the head was sent")
    except LookupError:
        start_response("500 Found Out", [TEXT], sys.exc_info())
    yield b"never sent"


def starts_twice(environ, start_response):
    start_response("200 OK", [TEXT])
    start_response("200 OK", [TEXT])
    return [b"never sent"]


def never_starts(environ, start_response):
    return [b"never sent"]


def starts_in_the_generator(environ, start_response):
    start_response("200 OK", [TEXT])
    yield b"started by the first next()"


def writes(environ, start_response):
    write = start_response("200 OK", [TEXT])
    write(b"written, ")
    write(b"")
    write(b"twice, ")
    return [b"then returned"]


def writes_and_raises(environ, start_response):
    write = start_response("200 OK", [TEXT])
    write(b"written")
    raise RuntimeError("raised after write()")


def streams(environ, start_response):
    """Yield a chunk, and the next one only when `/release` was asked for."""
    start_response("200 OK", [TEXT])
    yield b"first"
    assert released.wait(30)
    released.clear()
    yield b"second"


def release(environ, start_response):
    released.set()
    return listed(environ, start_response)


class Closing:
    """An iterable that says in the log that it was closed, and by what name."""

    def __init__(self, chunks, name):
        self.chunks = chunks
        self.name = name

    def __iter__(self):
        return iter(self.chunks)

    def close(self):
        print(f"closed: {self.name}")


def closes(environ, start_response):
    start_response("200 OK", [TEXT])
    return Closing([b"a", b"b"], environ["QUERY_STRING"])


def raises_in_its_body(environ, start_response):
    def chunks():
        yield b"one"
        raise RuntimeError("raised within the body")

    start_response("200 OK", [TEXT])
    return Closing(chunks(), environ["QUERY_STRING"])


def raises_before_its_body(environ, start_response):
    def chunks():
        raise RuntimeError("raised before the first chunk")
        yield

    start_response("200 OK", [TEXT, ("X-Lost", "1")])
    return Closing(chunks(), environ["QUERY_STRING"])


def endless(environ, start_response):
    def chunks():
        while True:
            yield b"x" * 65536

    start_response("200 OK", [TEXT])
    return Closing(chunks(), environ["QUERY_STRING"])


def raises(environ, start_response):
    raise RuntimeError("raised before start_response")


def raises_in_close(environ, start_response):
    class Raising(Closing):
        def close(self):
            raise RuntimeError("raised in close()")

    start_response("200 OK", [TEXT, ("Content-Length", "4")])
    return Raising([b"done"], "")


def exits(environ, start_response):
    sys.exit("an app that exits")


def interrupts(environ, start_response):
    raise KeyboardInterrupt


def stops_iterating(environ, start_response):
    next(iter([]))


def breaks_a_pipe(environ, start_response):
    """An OSError of the app's own, which is no word about the client."""
    raise BrokenPipeError("the database has gone away")


def too_short(environ, start_response):
    start_response("200 OK", [TEXT, ("Content-Length", "10")])
    return [b"four"]


def too_long(environ, start_response):
    start_response("200 OK", [TEXT, ("Content-Length", "4")])
    return [b"fo", b"ur and more", b" and more"]


def text_not_bytes(environ, start_response):
    start_response("200 OK", [TEXT])
    return ["text"]


def no_content(environ, start_response):
    start_response("204 No Content", [("Content-Length", "5")])
    return [b"never"]


def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"1"'), ("Content-Length", "5")])
    return [b"never"]


def injects_by_value(environ, start_response):
    start_response("200 OK", [TEXT, ("X-Name", "a\r\nSet-Cookie: b=c")])
    return [b"never"]


def injects_by_name(environ, start_response):
    start_response("200 OK", [TEXT, ("X-Name: a\r\nSet-Cookie", "b=c")])
    return [b"never"]


def injects_by_status(environ, start_response):
    start_response("200 OK\r\nSet-Cookie: b=c", [TEXT])
    return [b"never"]


def gives_a_status_without_digits(environ, start_response):
    start_response("OK", [TEXT])
    return [b"never"]


def gives_a_length_without_digits(environ, start_response):
    start_response("200 OK", [TEXT, ("Content-Length", "-1")])
    return [b"never"]


def hints(environ, start_response):
    environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload; as=style")])
    environ["wsgi.early_hints"]([("Link", "</app.js>; rel=preload; as=script")])
    start_response("200 OK", [TEXT])
    yield b"after the hints"
    environ["wsgi.early_hints"]([("Link", "</too-late.css>; rel=preload")])


def injects_by_hint(environ, start_response):
    environ["wsgi.early_hints"]([("Link", "</a>\r\n\r\nHTTP/1.1 200 OK")])
    return listed(environ, start_response)
