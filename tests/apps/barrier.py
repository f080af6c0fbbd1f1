"""Lets `?N` requests go on together, and says whether so many were in the app at once before `?N&S` seconds had passed."""

import threading

barriers = {}


def application(environ, start_response):
    count, seconds = environ["QUERY_STRING"].split("&")
    barrier = barriers.setdefault(count, threading.Barrier(int(count)))
    try:
        barrier.wait(float(seconds))
        answer = b"together"
    except threading.BrokenBarrierError:
        answer = b"in turn"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
