"""The soak's app in Django."""

from __future__ import annotations

import content
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None, MIDDLEWARE=[], ROOT_URLCONF=__name__, SECRET_KEY="soak")

from django.core.wsgi import get_wsgi_application  # noqa: E402 -- it reads the settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # noqa: E402
from django.http.response import HttpResponseBase  # noqa: E402
from django.urls import path  # noqa: E402

MOUNT = "/django"


def answer(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    for name, value in content.identity(MOUNT, request.environ):
        response[name] = value
    return response


def small(request: HttpRequest) -> HttpResponseBase:
    return sized(request, content.small(MOUNT, request.headers["Soak-Token"]))


def take(request: HttpRequest) -> HttpResponseBase:
    try:
        return sized(request, content.digest(reader(request)))
    except OSError:  # the client has left
        return HttpResponse()


def give(request: HttpRequest) -> HttpResponseBase:
    seed, length = (int(request.GET[name]) for name in ("seed", "length"))
    return answer(request, StreamingHttpResponse(content.pieces(seed, length), headers={"Content-Length": str(length)}))


def stream(request: HttpRequest) -> HttpResponseBase:
    arguments = [int(request.GET[name]) for name in ("seed", "length", "pause_ms")]
    return answer(request, StreamingHttpResponse(content.slow_pieces(*arguments)))


def echo(request: HttpRequest) -> HttpResponseBase:
    return answer(request, StreamingHttpResponse(content.echo(reader(request))))


def sized(request: HttpRequest, body: bytes) -> HttpResponseBase:
    return answer(request, HttpResponse(body, content_type="application/json", headers={"Content-Length": str(len(body))}))


def reader(request: HttpRequest):  # type: ignore[no-untyped-def] # of bytes
    return request.environ["wsgi.input"].read  # Django's own stream has no bytes for a body without Content-Length


urlpatterns = [path(view.__name__, view) for view in (small, take, give, stream, echo)]
application = get_wsgi_application()
