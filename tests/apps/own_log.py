"""Keeps a log file of its own, `OWN_LOG`, besides what it prints."""

import logging
import os

own = logging.getLogger("own")
own.setLevel(logging.INFO)
own.addHandler(logging.FileHandler(os.environ["OWN_LOG"]))


def application(environ, start_response):
    print("printed for", environ["QUERY_STRING"])
    own.info("logged for %s", environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", "0")])
    return []
