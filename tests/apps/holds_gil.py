"""Reads a byte from the FIFO at GATE, a path in the mount's environment, and holds its GIL while it waits, as bad C extensions do."""

import ctypes
import os


def application(environ, start_response):
    fd = os.open(os.environ["GATE"], os.O_RDONLY)  # waits for who will write, without the GIL
    ctypes.PyDLL(None).read(fd, ctypes.create_string_buffer(1), 1)
    os.close(fd)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"held"]
