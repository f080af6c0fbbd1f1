"""What gunicorn is told to serve: a config file, by one of two forms of its APP_MODULE."""

from __future__ import annotations

import ast
import re
import sys
from typing import Any

from isowsgi import configuration
from isowsgi.shared import interpreters

_FACTORY = re.compile(r"isowsgi:config(?P<arguments>\(.*\))\s*", re.DOTALL)


def config(path: str) -> Any:
    """Return what gunicorn takes for an app, so that `--check-config 'isowsgi:config("path/x.toml")'` checks the file.

    The worker never calls it: it reads the path out of the text.

    Raises:
        SystemExit: the file has faults; they are printed, a line each.
    """
    try:
        configuration.load(path, own_gil_error=interpreters.own_gil_error())
    except configuration.ConfigError as exc:
        print(exc, file=sys.stderr)
        raise SystemExit(1) from exc
    return not_called


def config_path(app: str) -> str:
    """Return the config file's path from gunicorn's APP_MODULE.

    Raises:
        configuration.ConfigError: it is neither of the two forms.
    """
    if (factory := _FACTORY.fullmatch(app)) is not None:
        try:
            call = ast.parse(f"f{factory['arguments']}", mode="eval").body
            assert isinstance(call, ast.Call)
            arguments = [ast.literal_eval(argument) for argument in [*call.args, *(keyword.value for keyword in call.keywords)]]
        except (SyntaxError, ValueError, AssertionError):
            arguments = []
        if len(arguments) == 1 and isinstance(arguments[0], str):
            return arguments[0]
    elif app.endswith(".toml"):
        return app
    expected = "'isowsgi.toml' or 'isowsgi:config(\"path/isowsgi.toml\")'"
    raise configuration.ConfigError((f"isowsgi.Worker serves the apps of a config file: expected {expected}, got {app!r}",))


def not_called(environ: Any, start_response: Any) -> Any:
    raise RuntimeError("only isowsgi's worker can serve the apps of a config file; run gunicorn with -k isowsgi.Worker")
