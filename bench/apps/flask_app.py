"""The smallest Flask app that goes through routing and a JSON response."""

from flask import Flask, jsonify


def create(name):
    app = Flask(name)

    @app.get("/")
    def index():
        return jsonify(framework="flask", numbers=[1, 2, 3])

    return app


application = create(__name__)
