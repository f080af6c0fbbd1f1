"""Says as JSON where it runs: its environment, working directory, process, and how many threads serve it."""

import json
import os
import sys
import threading


def application(environ, start_response):
    names = [thread.name for thread in threading.enumerate()]
    facts = {
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "path": sys.path,
        "pid": os.getpid(),
        "threads": sum(name.startswith("isowsgi-") and name[8:].isdigit() for name in names),
    }
    body = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
