"""Answers with what it finds around it: which isolation it has. Some paths end the process, wait, or never end."""

import json
import os
import signal
import sys
import time

print("loaded as", __name__)
seen = 0


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/crash":
        signal.raise_signal(signal.SIGSEGV)
    if path == "/leave":
        os._exit(7)
    if path == "/wait":
        print("waits")
        with open(environ["QUERY_STRING"]) as fifo:
            fifo.read()
    if path == "/spin":
        while True:
            pass
    if path == "/raise":
        raise ValueError("as it was told")
    if path == "/stream":

        def chunks():
            yield b"a" * 100
            signal.raise_signal(signal.SIGSEGV)

        start_response("200 OK", [("Content-Length", "200")])
        return chunks()
    global seen
    seen += 1
    facts = {
        "mount": environ["isowsgi.mount"],
        "isolation": environ["isowsgi.isolation"],
        "generation": environ["isowsgi.generation"],
        "script": environ["SCRIPT_NAME"],
        "pid": os.getpid(),
        "parent": os.getppid(),
        "version": list(sys.version_info[:3]),
        "seen": seen,
        "module": id(sys.modules[__name__]),
        "env": os.environ.get("PLACE"),
        "body": environ["wsgi.input"].read().decode(),
    }
    text = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]


def napping(environ, start_response):
    time.sleep(0.005)
    return application(environ, start_response)
