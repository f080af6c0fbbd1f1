"""Holds its interpreter's GIL: `application` for some 5 ms a request, `busy` for as long as its query string says, in seconds.

Run as a program it does the work of `application` in a plain process, for as many seconds as its argument says, and prints how often:
what this machine gives to a process just now. It begins when a line comes on its standard input.
"""

import sys
import time

_LOOPS = 100_000


def work():
    x = 0
    for n in range(_LOOPS):
        x = (x + n) & 0xFFFF


def application(environ, start_response):
    work()
    return _answer(start_response)


def busy(environ, start_response):
    spin(float(environ["QUERY_STRING"]))
    return _answer(start_response)


def spin(seconds):
    """Loop without a call that would give the GIL away."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _answer(start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"done\n"]


def _main():
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + float(sys.argv[1])
    count = 0
    while time.monotonic() < end:
        work()
        count += 1
    print(count, flush=True)


if __name__ == "__main__":
    _main()
