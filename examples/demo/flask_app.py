"""One Flask app, mounted twice with two incompatible Flasks: the venv of the mount decides which one it imports."""

from importlib.metadata import version

import page
from flask import Flask, Response, request

app = Flask(__name__)


@app.get("/")
def index() -> Response:
    content_type, text = page.render(request.environ, {"Flask": version("flask"), "Werkzeug": version("werkzeug")})
    return Response(text, content_type=content_type, headers={"Vary": "Accept"})
