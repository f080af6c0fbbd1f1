"""Each request sleeps for as long as its query says, `?seconds=1.5`, and says so before."""

import time
from urllib.parse import parse_qs


def application(environ, start_response):
    seconds = float(parse_qs(environ["QUERY_STRING"])["seconds"][0])
    print("nap", seconds)
    time.sleep(seconds)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "7")])
    return [b"rested\n"]
