"""A response that comes in small pieces over two seconds."""

import time


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(8):
        yield b"drip\n"
        time.sleep(0.3)
