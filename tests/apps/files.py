"""Sends files by wsgi.file_wrapper; the file is the one that FILE names in the mount's environment."""

import io
import os


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/")](environ, start_response)


def _send(environ, start_response, file, length=None):
    fields = [("Content-Type", "application/octet-stream")]
    if length is not None:
        fields.append(("Content-Length", str(length)))
    start_response("200 OK", fields)
    return environ["wsgi.file_wrapper"](file, 4096)


def whole(environ, start_response):
    return _send(environ, start_response, open(os.environ["FILE"], "rb"), os.path.getsize(os.environ["FILE"]))


def without_length(environ, start_response):
    return _send(environ, start_response, open(os.environ["FILE"], "rb"))


def from_an_offset(environ, start_response):
    """read() of a buffered file takes more from the descriptor than the app sees."""
    file = open(os.environ["FILE"], "rb")
    file.read(10)
    return _send(environ, start_response, file)


def from_an_offset_with_length(environ, start_response):
    file = open(os.environ["FILE"], "rb", buffering=0)
    file.seek(10)
    return _send(environ, start_response, file, 7)


def shorter_than_the_file(environ, start_response):
    return _send(environ, start_response, open(os.environ["FILE"], "rb"), 5)


def longer_than_the_file(environ, start_response):
    return _send(environ, start_response, open(os.environ["FILE"], "rb"), os.path.getsize(os.environ["FILE"]) + 1)


def behind_its_end(environ, start_response):
    file = open(os.environ["FILE"], "rb")
    file.seek(0, os.SEEK_END)
    return _send(environ, start_response, file)


def in_memory(environ, start_response):
    return _send(environ, start_response, io.BytesIO(b"in memory"), 9)


def without_a_size(environ, start_response):
    """A regular file by its mode, whose size the kernel does not tell before it is read."""
    return _send(environ, start_response, open("/proc/version", "rb"))


def from_a_pipe(environ, start_response):
    read, write = os.pipe()
    os.write(write, b"from a pipe")
    os.close(write)
    return _send(environ, start_response, os.fdopen(read, "rb"))


def closed(environ, start_response):
    class Closing(io.FileIO):
        def close(self):
            if not self.closed:
                print(f"closed: {environ['QUERY_STRING']}")
            super().close()

    return _send(environ, start_response, Closing(os.environ["FILE"]))


def after_write(environ, start_response):
    write = start_response("200 OK", [("Content-Length", "12")])
    write(b"written, ")
    return environ["wsgi.file_wrapper"](open(os.environ["FILE"], "rb"))


def wrapped_but_not_returned(environ, start_response):
    """What the app returns around the wrapper decides, not the file in it."""
    return (chunk.upper() for chunk in _send(environ, start_response, open(os.environ["FILE"], "rb")))
