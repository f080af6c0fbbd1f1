"""Every way for a request to get into trouble; the path says which."""

import hashlib
import os
import re
import signal
import threading
import time

never_released = threading.Lock()
never_released.acquire()
leaked = []


def application(environ, start_response):
    what = environ["PATH_INFO"].strip("/")
    if what:
        TROUBLES[what](environ)
    body = b"generation %d\n" % environ["isowsgi.generation"]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def loop(environ):
    while True:
        pass


def swallow(environ):
    """Catch what is raised to end the loop, and go on as if nothing had been."""
    try:
        loop(environ)
    except BaseException as exc:
        print("swallowed", type(exc).__name__)


def hold_the_gil(environ):
    """One call of C code that never looks up: a regular expression that backtracks for ever."""
    re.match(r"(a+)+$", "a" * 40 + "b")


def release_the_gil(environ):
    """One call of C code without the GIL, of about a minute."""
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 60_000_000)


def recursion(environ):
    recursion(environ)


def gigabyte(environ):
    bytearray(1 << 30)


def leak_threads(environ):
    stop = threading.Event()
    for _ in range(1000):
        thread = threading.Thread(target=stop.wait, daemon=True)
        thread.start()
        leaked.append(thread)


def leak_descriptors(environ):
    for _ in range(10_000):
        leaked.append(os.open(os.devnull, os.O_RDONLY))


TROUBLES = {
    "loop": loop,
    "swallow": swallow,
    "sleep": lambda environ: time.sleep(60),
    "lock": lambda environ: never_released.acquire(),
    "release_the_gil": release_the_gil,
    "hold_the_gil": hold_the_gil,
    "body": lambda environ: environ["wsgi.input"].read(),
    "recursion": recursion,
    "gigabyte": gigabyte,
    "leak_threads": leak_threads,
    "leak_descriptors": leak_descriptors,
    "chdir": lambda environ: os.chdir("/"),
    "exit": lambda environ: os._exit(7),
    "crash": lambda environ: signal.raise_signal(signal.SIGSEGV),
}
