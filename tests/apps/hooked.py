"""An app with hooks, which print what they were called with; `on_boot` leaves the app something to answer."""

import os
import sys
import threading
import time

state = {"prepared": "no"}


def post_fork(info):
    print("post_fork", sorted(info.items()), threading.current_thread().name)


def on_boot(info):
    state["prepared"] = "yes"
    print("on_boot", sorted(info.items()), threading.current_thread().name)


def on_drain(info):
    print("on_drain", sorted(info.items()), threading.current_thread().name)


def on_request_start(environ):
    print("on_request_start", environ["PATH_INFO"])
    environ["hooked.note"] = "a note"


def on_request_end(environ, status, seconds):
    print("on_request_end", environ["PATH_INFO"], status, environ["hooked.note"], type(seconds).__name__, seconds < 60)


def fails(*args):
    raise LookupError("a hook's own mistake")


def exits(*args):
    sys.exit(3)


def sleeps(*args):
    while not os.path.exists("gate"):
        time.sleep(0.05)


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise ValueError("the app's mistake")
    start_response("200 OK" if path != "/late" else "404 Not Found", [("Content-Type", "text/plain")])
    if path == "/late":
        raise ValueError("before anything was sent")
    body = f"{state['prepared']} {environ.get('hooked.note')}"
    return [body.encode()]
