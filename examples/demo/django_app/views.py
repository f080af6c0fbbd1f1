import django
import page
from django.db import connection
from django.http import HttpRequest, HttpResponse


# No template: Django 4.2 cannot copy a template's context on CPython 3.14 and later ({% include ... only %} and the admin do),
# and this project is served by both Djangos on all Pythons. What does not copy one, works.
def index(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT sqlite_version()")
        (sqlite_version,) = cursor.fetchone()
    content_type, text = page.render(request.META, {"Django": django.get_version(), "SQLite": sqlite_version})
    return HttpResponse(text, content_type=content_type, headers={"Vary": "Accept"})
