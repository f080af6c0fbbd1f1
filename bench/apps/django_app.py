"""The smallest Django app that goes through middleware, routing and a JSON response."""

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="no secret",
)

from django.core.wsgi import get_wsgi_application  # noqa: E402 -- it reads the settings
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402


def index(request):
    return JsonResponse({"framework": "django", "numbers": [1, 2, 3]})


urlpatterns = [path("", index)]
application = get_wsgi_application()
