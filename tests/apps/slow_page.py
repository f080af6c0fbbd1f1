"""A page of Django's with a slow query and a slow template, and one that is quick."""

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.template import engines
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [os.path.dirname(__file__)]}],
)
django.setup()

SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT sum(i) FROM n"


def total():
    with connection.cursor() as cursor:
        cursor.execute(SLOW)
        return cursor.fetchone()[0]


def page(request):
    return HttpResponse(engines["django"].get_template("slow_page.html").render({"total": total(), "items": range(2500)}))


def quick(request):
    return HttpResponse("quick")


urlpatterns = [path("page", page), path("quick", quick)]
application = get_wsgi_application()
