"""The fewest settings with which Django serves a page and has a database."""

import secrets

DEBUG = False
ALLOWED_HOSTS = ["*"]  # the demo listens on this machine only
SECRET_KEY = secrets.token_urlsafe()  # nothing signed has to outlive the demo
ROOT_URLCONF = "django_app.urls"
WSGI_APPLICATION = "django_app.wsgi.application"
INSTALLED_APPS: list[str] = []
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
