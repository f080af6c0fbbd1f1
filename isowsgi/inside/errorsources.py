"""Where an app's exceptions are heard of: what frameworks and `logging` publish for that, in the app's own modules.

No framework is imported for it, and nothing is patched. Flask and Django have a signal for exceptions that they answer with 500, Pyramid
an event for each response, and `logging` a factory for its records, which is called for every record whatever the app does with its
handlers. Falcon and Bottle write to `wsgi.errors`, see `errornotes.note_text`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isowsgi.inside import errornotes
from isowsgi.inside.errornotes import LOGGED_WITH, PUBLISHED
from isowsgi.inside.private import theirs

_app_sys = theirs("sys")

# logging.ERROR, as a number: an app may change the module's.
_ERROR = 40

_connected: set[str] = set()  # those sources of this interpreter


def connect() -> None:
    """Listen to what is loaded by now; to be called again when more may be. What an app has made of its modules may fail in any way."""
    modules = _app_sys.modules
    for name, listen in _SOURCES.items():
        if name in _connected:
            continue
        try:
            module = modules.get(name)
            if module is not None and listen(module):
                _connected.add(name)
        except Exception:  # an old release without signals, or another module of that name
            _connected.add(name)


def _listen_to_flask(module: Any) -> bool:
    module.got_request_exception.connect(_on_flask, weak=False)
    return True


def _on_flask(sender: Any, exception: Any = None, **facts: Any) -> None:
    errornotes.note(PUBLISHED, exception)


def _listen_to_django(module: Any) -> bool:
    module.got_request_exception.connect(_on_django, weak=False)
    return True


def _on_django(sender: Any, **facts: Any) -> None:
    """Django tells of the request alone; it does so while it handles the exception."""
    errornotes.note_handled(PUBLISHED)


def _listen_to_pyramid(module: Any) -> bool:
    """Listen to all apps that were made."""
    event = _app_sys.modules["pyramid.interfaces"].INewResponse
    registries = list(module.global_registries)
    for registry in registries:
        registry.registerHandler(_on_pyramid, (event,))
    return bool(registries)


def _on_pyramid(event: Any) -> None:
    """Pyramid's exception views leave what they answer in the request."""
    try:
        exc_info = vars(event.request).get("exc_info")
        if exc_info and event.response.status_int >= 500:
            errornotes.note(PUBLISHED, exc_info[1], exc_info[2])
    except Exception:  # a request or response of the app's own kind
        return


def _listen_to_logging(module: Any) -> bool:
    module.setLogRecordFactory(_listening(module.getLogRecordFactory()))
    return True


def _listening(factory: Callable[..., Any]) -> Callable[..., Any]:
    def make_record(*args: Any, **kwargs: Any) -> Any:
        record = factory(*args, **kwargs)
        try:
            exc_info = record.exc_info
            if exc_info and exc_info[1] is not None:
                errornotes.note(LOGGED_WITH, exc_info[1], exc_info[2])
            elif record.levelno >= _ERROR:
                errornotes.note_handled()
        except Exception:  # a record of the app's own kind
            return record
        return record

    return make_record


_SOURCES: dict[str, Callable[[Any], bool]] = {
    "flask.signals": _listen_to_flask,
    "django.core.signals": _listen_to_django,
    "pyramid.config": _listen_to_pyramid,
    "logging": _listen_to_logging,
}
