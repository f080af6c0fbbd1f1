"""Takes its time: `?s=0.5` sleeps so long, `?burn=2` keeps the CPU, and the GIL, for so long. Prints a line when it begins."""

import time
from urllib.parse import parse_qs


def application(environ, start_response):
    query = parse_qs(environ["QUERY_STRING"])
    print("begun", environ["QUERY_STRING"])
    time.sleep(float(query.get("s", ["0"])[0]))
    until = time.monotonic() + float(query.get("burn", ["0"])[0])
    while time.monotonic() < until:
        pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"done\n"]
