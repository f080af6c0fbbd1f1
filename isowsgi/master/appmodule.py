"""What gunicorn is told to serve: a config file, by one of two forms of its APP_MODULE."""

from __future__ import annotations

import ast
import re
import sys
from types import FrameType
from typing import Any

from gunicorn.errors import AppImportError

import isowsgi
from isowsgi import configuration
from isowsgi.configuration import certificates
from isowsgi.shared import interpreters

_FACTORY = re.compile(r"isowsgi:config(?P<arguments>\(.*\))\s*", re.DOTALL)


def config(path: str) -> Any:
    """Return what gunicorn takes for an app, so that `--check-config 'isowsgi:config("path/x.toml")'` checks the file.

    The worker never calls it: it reads the path out of the text.

    Raises:
        SystemExit: the file has faults; they are printed, a line each.
        AppImportError: another worker class than isowsgi's would serve it; gunicorn prints its text and stops.
    """
    if _is_to_be_served():
        text = "isowsgi: gunicorn runs with another worker class, which cannot serve the apps of a config file; add -k isowsgi.Worker"
        raise AppImportError(text)
    try:
        found = configuration.load(path, own_gil_error=interpreters.own_gil_error())
    except configuration.ConfigError as exc:
        print(exc, file=sys.stderr)
        raise SystemExit(1) from exc
    faults, warnings = certificates.check(found, path)
    for text in (*faults, *warnings):
        print(text, file=sys.stderr)
    if faults:
        raise SystemExit(1)
    return not_called


def _is_to_be_served() -> bool:
    """Whether gunicorn imports it to serve it: its own classes of workers do, and isowsgi's does not; other options only import it."""
    from gunicorn.config import Config  # late: it takes defaults from the working directory and the environment when it is imported

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        cfg = getattr(frame.f_locals.get("self"), "cfg", None)
        if isinstance(cfg, Config):
            return not (cfg.check_config or cfg.print_config or issubclass(cfg.worker_class, isowsgi.Worker))
        frame = frame.f_back
    return False


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
