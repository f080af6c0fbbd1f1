"""Makes apps: what the config file calls with arguments of its own."""


def make(*arguments, **options):
    def application(environ, start_response):
        body = repr((arguments, options)).encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return application


def make_nothing():
    return None
