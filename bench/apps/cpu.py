"""Some milliseconds of pure Python, which gives its GIL up only when it is made to."""

TURNS = 60_000


def application(environ, start_response):
    total = 0
    for number in range(TURNS):
        total += number * number
    body = b"%d" % total
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
