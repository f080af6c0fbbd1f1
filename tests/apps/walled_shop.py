"""A Django site in one file, with a database of sqlite beside it and media that visitors upload."""

import os
import tempfile
from pathlib import Path

from django.conf import settings
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.urls import path

HERE = Path(os.environ["SHOP"])

settings.configure(
    SECRET_KEY="x",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HERE / "db" / "shop.sqlite3"}},
    MEDIA_ROOT=HERE / "media",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)

application = get_wsgi_application()
with tempfile.NamedTemporaryFile():  # its own folder is there at the import
    pass
call_command("migrate", verbosity=0)
with connection.cursor() as cursor:
    cursor.execute("create table if not exists uploads (name text)")


def upload(request):
    """Keep a file; what is larger than 2.5 MB Django has put into the folder for temporary files first."""
    file = request.FILES["file"]
    name = default_storage.save(file.name, file)
    with connection.cursor() as cursor:
        cursor.execute("insert into uploads values (%s)", [name])
        cursor.execute("select count(*) from uploads")
        return JsonResponse({"name": name, "in": type(file).__name__, "uploads": cursor.fetchone()[0]})


def media(request, name):
    with default_storage.open(name) as file:
        return HttpResponse(file.read(), content_type="application/octet-stream")


def peek(request):
    """Try to read a file of a neighbour's, and to write beside its own code."""
    tried = {}
    for what, act in (("read", lambda: Path(request.GET["path"]).read_bytes()), ("write", (HERE / "new.py").touch)):
        try:
            act()
        except OSError as exc:
            tried[what] = exc.strerror
    return JsonResponse(tried)


def note(request):
    """Write where the config names nothing."""
    (HERE / "notes.txt").write_text("a")


urlpatterns = [path("note", note), path("upload", upload), path("media/<name>", media), path("peek", peek)]
