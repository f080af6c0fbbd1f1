"""Each request prints "asleep" and sleeps until there is a file at GATE, a path in the mount's environment."""

import os
import time


def application(environ, start_response):
    print("asleep")
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.25)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"awake\n"]
