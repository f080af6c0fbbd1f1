"""Says as JSON as whom it runs and what it has, and writes or starts what it is asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path


def facts():
    return {
        "pid": os.getpid(),
        "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "environ": dict(os.environ),
        "files": {name: target(name) for name in os.listdir("/proc/self/fd")},
        "secrets": [os.environ.get("SECRET"), Path(f"/proc/{os.getpid()}/environ").read_text().count("SECRET")],
    }


def target(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


def leave_behind():
    """Start what is in its own session, and is nobody's child."""
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        return int(child.stdout.readline())


def application(environ, start_response):
    said = {}
    if environ["PATH_INFO"] == "/write":
        path = Path(environ["QUERY_STRING"])
        path.write_text("x")
        said["path"] = str(path)
    elif environ["PATH_INFO"] == "/leave":
        said["left"] = leave_behind()
    else:
        said = facts()
    body = json.dumps(said).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
