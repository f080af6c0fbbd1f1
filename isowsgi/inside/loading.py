"""Loads the apps of an instance, and makes of each what calls it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import SourceFileLoader
from typing import Any

from gunicorn import util
from gunicorn.errors import AppImportError

from isowsgi.inside import environment
from isowsgi.inside.errorbook import ErrorBook
from isowsgi.inside.private import theirs
from isowsgi.inside.wsgi import Application, Gateway
from isowsgi.shared import slices
from isowsgi.shared.messages import App, BootOrder, Member
from isowsgi.shared.rows import Row

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from isowsgi.inside.hooks import Hooks

_app_sys = theirs("sys")  # the app's, see `private`

# The module that a script's code becomes; in sys.modules, so that what it defines can be pickled.
_SCRIPT_MODULE = "isowsgi_script"

# Of what an app answers in a trial: a status, or an exception's first words.
_MOST_STATUS_CHARS = 200


class WarmUpError(Exception):
    """The app was loaded, but its answer to the warm-up request is a server error."""


class Loader:
    """Loads the order's apps, and keeps what is known of that.

    Args:
        rows: the control thread's on the scoreboard, by the mount's number.
        errors: what the apps have as `wsgi.errors`.
        end_lines: called at a request's end, see `wsgi.Gateway`.
        book: counts the apps' errors.
        loaded: the apps, by their mounts' numbers, where they were loaded before; else empty.

    Attributes:
        hooks: the mount's, once they are loaded, if it has any.
        is_in_hook: while they are loaded and `on_boot` is called.
        apps: those that are loaded, by their mounts' numbers.
        whose: app could not be loaded, in a group; for a text.
    """

    def __init__(
        self,
        order: BootOrder,
        cfg: Any,
        log: Any,
        rows: Mapping[int, Row],
        errors: Any,
        end_lines: Callable[[], None],
        book: ErrorBook,
        loaded: Mapping[int, Application],
    ) -> None:
        assert order.fds is not None, "the maker of the instance gives it descriptors"
        self._order = order
        self._cfg = cfg
        self._log = log
        self._control_rows = rows
        self._errors = errors
        self._end_lines = end_lines
        self._book = book
        self._board_fd = order.fds.board
        self._is_draining = False
        self.hooks: Hooks | None = None
        self._is_copy = bool(loaded)
        self.apps: dict[int, Any] = dict(loaded)
        self.is_in_hook = False
        self.whose = ""
        self._gateways: dict[int, Gateway] = {}
        if order.hooks:  # before the app is loaded, see `private`
            from isowsgi.inside import hooks  # noqa: F401 # most mounts have none, and need not pay for it
        if any(member.https_only for member in order.members):  # as well
            from isowsgi.inside import httpsonly  # noqa: F401

    def gateways(self) -> dict[int, Gateway]:
        """Load the apps, then the hooks, and ask for the warm-up requests; return what calls each app, by its mount's number."""
        order = self._order
        if order.host.has_long_slices:
            slices.lengthen()
        if not self._is_copy:
            self._load_apps()
        self._book.listen()
        if order.hooks:
            self.is_in_hook = True
            self._load_hooks()
            self.is_in_hook = False
        gateways = {member.mount: self._make_gateway(member, self.apps[member.mount]) for member in order.members}
        for member in order.members:
            self._warm_up(gateways[member.mount], member.warmup)
        if order.host.has_long_slices:
            slices.restore()
        self._gateways = gateways
        return gateways

    def answers(self, paths: Iterable[str]) -> list[tuple[str, str, str]]:
        """Ask each app for paths, as for its warm-up; return pattern, path, and status or the exception."""
        found = []
        for member in self._order.members:
            for path in paths:
                try:
                    status = self._gateways[member.mount].warm_up(path, self._server())
                except Exception as exc:
                    status = f"{type(exc).__name__}: {exc}"
                found.append((member.pattern, path, status[:_MOST_STATUS_CHARS]))
        return found

    def drain(self) -> None:
        """Tell the hooks that the instance drains; on the control thread."""
        self._is_draining = True
        if self.hooks is not None:
            self.hooks.drain()

    def _load_apps(self) -> None:
        end_loading = environment.be_main_thread_while_loading()
        try:
            self.apps = {member.mount: self._load_app(member) for member in self._order.members}
        finally:
            end_loading()

    def _load_app(self, member: Member) -> Application:
        row = self._control_rows[member.mount]
        row.say_loading(True)  # if that ends the process, the master knows whose doing it was
        try:
            return load(member.app, member.mount)
        except BaseException:
            if len(self._order.members) > 1:
                self.whose = f" (the app of {member.pattern})"
            raise
        finally:
            row.say_loading(False)

    def _make_gateway(self, member: Member, app: Application) -> Gateway:
        order = self._order
        extra: dict[str, Any] = {
            "wsgi.errors": self._errors,
            "wsgi.multithread": order.serving.threads > 1,
            "wsgi.multiprocess": order.serving.multiprocess,
            "isowsgi.mount": member.pattern,
            "isowsgi.generation": order.generation,
            "isowsgi.isolation": order.isolation,
        }
        if (status := order.status) is not None:
            extra["isowsgi.status"] = {"host": status.host, "allow": status.allow, "hosts": status.hosts, "board": self._board_fd}
        if member.https_only:
            from isowsgi.inside.httpsonly import HttpsOnly  # late, as in __init__

            app = HttpsOnly(app)
        prefix = next(route.prefix for route in order.serving.routes if route.mount == member.mount)
        parts = (member.mount, app, self._cfg, self._log, prefix, extra, self._end_lines, self._book)
        if self.hooks is None or not self.hooks.for_requests:
            gateway = Gateway(*parts)
        else:
            from isowsgi.inside.hooks import HookedGateway  # late, as in _load_hooks

            gateway = hooked = HookedGateway(*parts)
            hooked.hooks = self.hooks
        gateway.has_server_timing = order.serving.server_timing
        return gateway

    def _load_hooks(self) -> None:
        """Load the mount's hooks and call the first of them."""
        # Late: most mounts have none, and need not pay for it.
        from isowsgi.inside.hooks import Hooks

        order = self._order
        info = {"generation": order.generation, "isolation": order.isolation, "threads": order.serving.threads, "mount": order.name}
        hooks = Hooks(order.hooks, info, self._log)
        hooks.boot(self._is_copy)
        self.hooks = hooks  # whichever comes last, this or the order to drain, finds the other
        if self._is_draining:
            hooks.drain()

    def _warm_up(self, gateway: Gateway, path: str | None) -> None:
        if path is None:
            return
        status = gateway.warm_up(path, self._server())
        if not "100" <= status[:3] < "500":
            raise WarmUpError(f"the warm-up request {path!r} was answered {status!r}")

    def _server(self) -> tuple[Any, ...] | None:
        listeners = self._order.serving.listeners
        return tuple(listeners[0]) if listeners else None


def load(app: App, mount: int) -> Application:
    """Import an app as gunicorn's `import_app` does, or run a script as mod_wsgi does and take its callable.

    Args:
        app: of kind "module" with a dotted name as target, or "script" with a path; and the attribute or factory call.
        mount: the mount's number; scripts of one interpreter are modules of different names.
    """
    target = app.target
    if app.kind == "script":
        name = _SCRIPT_MODULE if _SCRIPT_MODULE not in _app_sys.modules else f"{_SCRIPT_MODULE}_{mount}"
        loader = SourceFileLoader(name, target)
        spec = importlib.util.spec_from_file_location(name, target, loader=loader)
        assert spec is not None, "a loader was given"
        module = importlib.util.module_from_spec(spec)
        _app_sys.modules[name] = module
        loader.exec_module(module)
        target = name
    try:
        loaded: Application = util.import_app(f"{target}:{app.call}")
    except AppImportError as exc:
        raise AppImportError(f"{exc}{_meant(target, app.call)}") from None
    return loaded


def _meant(module: str, call: str) -> str:
    """Return which name of a module may be meant by one that it does not have; "" if none is like it."""
    import difflib  # for a load that has failed; none pays for it that works

    names = vars(_app_sys.modules[module])
    name = call.partition("(")[0].strip()
    likely = [each for each, value in names.items() if callable(value) and not each.startswith("_")]
    near = difflib.get_close_matches(name, likely, 1) or [
        each for each in ("application", "app", "create_app", "make_app") if each in likely
    ]
    return "" if name in names or not near else f" Did you mean {near[0]!r}?"
