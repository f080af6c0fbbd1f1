"""The table of gunicorn's settings is whole and true, and an interpreter's Settings pass for a gunicorn Config."""

import ast
import datetime
import json
import logging
import os
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from gunicorn import glogging, util
from gunicorn.config import KNOWN_SETTINGS, Config
from gunicorn.config import Setting as GunicornSetting
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import create
from gunicorn.instrument.statsd import Statsd

from isowsgi.configuration.crossing import snapshot
from isowsgi.configuration.gunicorn_settings import SETTINGS, Handling, check
from isowsgi.inside.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
NAMES = [setting.name for setting in KNOWN_SETTINGS]

# Values that gunicorn's validators take and that are not the default, where other_value cannot guess one.
OTHERS: dict[str, Any] = {
    "asgi_lifespan": "on",
    "asgi_loop": "uvloop",
    "bind": ["127.0.0.1:1"],
    "cert_reqs": 2,
    "chdir": "/",
    "control_socket_mode": 0o660,
    "forwarded_allow_ips": "10.0.0.0/8",
    "forwarder_headers": "REMOTE_USER",
    "header_map": "refuse",
    "http2_cleartext": "upgrade",
    "http2_max_frame_size": 20000,
    "http_parser": "python",
    "http_protocols": "h2,h1",
    "logconfig_dict": {"version": 1},
    "post_request": lambda _worker, _req: None,  # the short form, which gunicorn wraps in a function of four
    "protocol": "uwsgi",
    "proxy_allow_ips": "*",
    "proxy_protocol": "v2",
    "reload_engine": "poll",
    "reload_extra_files": [__file__],
    "secure_scheme_headers": {"X-PROTO": "tls"},
    "sendfile": False,
    "ssl_version": 99,
    "statsd_host": "localhost:8125",
    "uwsgi_allow_ips": "*",
}

HOOKS: dict[int, Callable[..., None]] = {
    1: lambda _one: None,
    2: lambda _one, _two: None,
    3: lambda _one, _two, _three: None,
}


def other_value(name: str) -> Any:
    """Return a value for a setting that is not gunicorn's default."""
    if name in OTHERS:
        return OTHERS[name]
    default = Config().settings[name].get()
    match default:
        case bool():
            return not default
        case int():
            return default + 1
        case list():
            return ["A=1"]
        case str() | None:
            return "other"
        case types.FunctionType():
            return HOOKS[default.__code__.co_argcount]
    raise AssertionError(f"no idea for a value of {name}: give OTHERS one")


def config(**values: object) -> Config:
    made = Config()
    for name, value in values.items():
        made.set(name, value)
    return made


def inside(cfg: Config) -> Settings:
    """Make an interpreter's Settings of a Config, by the way they travel."""
    return Settings(json.loads(json.dumps(snapshot(cfg))))


def named(lines: list[str], name: str) -> bool:
    return any(line.startswith(f"gunicorn setting {name}:") for line in lines)


def names_of(handling: Handling) -> list[str]:
    return [name for name, verdict in SETTINGS.items() if verdict.handling is handling]


class TestTable:
    def test_knows_every_setting_of_gunicorn_and_no_other(self) -> None:
        assert set(SETTINGS) == set(NAMES)

    def test_keeps_gunicorns_sections_together(self) -> None:
        """Whoever adds a setting finds its place by gunicorn's list."""
        section_of = {setting.name: setting.section for setting in KNOWN_SETTINGS}
        runs = [section for section, _ in groupby(SETTINGS, key=section_of.__getitem__)]

        assert runs == list(dict.fromkeys(setting.section for setting in KNOWN_SETTINGS))

    def test_notes_are_in_the_voice_of_messages(self) -> None:
        for name, setting in SETTINGS.items():
            assert setting.note, name
            assert not setting.note.endswith("."), name
            assert "|" not in setting.note, f"{name} would break the table of the docs"

    def test_page_of_the_docs_is_fresh(self) -> None:
        script = [sys.executable, str(ROOT / "tools" / "settings_page.py"), "--check"]

        done = subprocess.run(script, capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr) == (0, "")


class TestCheck:
    def test_defaults_are_nobodys_business(self) -> None:
        assert check(Config()) == ([], [])

    def test_a_default_set_by_hand_is_no_business_either(self) -> None:
        for name in NAMES:
            cfg = Config()
            default = type(cfg.settings[name]).default
            if default is not None:
                cfg.set(name, default)

            assert check(cfg) == ([], []), name

    @pytest.mark.parametrize("name", names_of(Handling.REFUSED))
    def test_refused_is_refused_by_name(self, name: str) -> None:
        refusals, warnings = check(config(**{name: other_value(name)}))

        assert len(refusals) == 1
        assert named(refusals, name)
        assert refusals[0].endswith(SETTINGS[name].note)
        assert warnings == []

    @pytest.mark.parametrize("name", names_of(Handling.IGNORED))
    def test_ignored_is_warned_about_by_name(self, name: str) -> None:
        refusals, warnings = check(config(**{name: other_value(name)}))

        assert refusals == []
        assert len(warnings) == 1
        assert named(warnings, name)
        assert warnings[0].endswith(SETTINGS[name].note)

    def test_honoured_goes_without_a_word(self) -> None:
        for name in names_of(Handling.HONOURED):
            assert check(config(**{name: other_value(name)})) == ([], []), name

    def test_all_faults_are_told_at_once(self) -> None:
        refusals, warnings = check(config(http2_cleartext="upgrade", protocol="uwsgi", spew=True, root_path="/x"))

        assert [line.split(":")[0] for line in refusals] == ["gunicorn setting protocol", "gunicorn setting http2_cleartext"]
        assert [line.split(":")[0] for line in warnings] == ["gunicorn setting spew", "gunicorn setting root_path"]

    def test_only_the_fast_parser_is_refused(self) -> None:
        assert check(config(http_parser="auto")) == ([], [])
        assert check(config(http_parser="python")) == ([], [])
        assert check(config(http_parser="fast")) == (
            [f"gunicorn setting http_parser: refused, got 'fast': {SETTINGS['http_parser'].note}"],
            [],
        )

    def test_a_hook_is_shown_by_name(self) -> None:
        def log_it(worker: object, request: object) -> None: ...

        assert "log_it(): " in check(config(pre_request=log_it))[0][0]

    def test_a_setting_of_a_newer_gunicorn_is_a_warning_when_set(self) -> None:
        class Tomorrow(GunicornSetting):  # type: ignore[misc,valid-type,unused-ignore]  # made by gunicorn's metaclass
            name = "tomorrow"
            section = "Server Socket"
            validator = str
            default = "off"
            desc = "Of a gunicorn to come."

        try:
            cfg = Config()
        finally:
            KNOWN_SETTINGS.remove(Tomorrow)

        assert check(cfg) == ([], [])
        cfg.set("tomorrow", "on")
        assert check(cfg) == ([], ["gunicorn setting tomorrow: not known to this isowsgi, got 'on': it may have no effect"])


class TestWhatCannotCross:
    @pytest.mark.parametrize("name", ["workers", "worker_connections"])
    def test_what_serves_nobody_is_refused(self, name: str) -> None:
        """gunicorn starts with it, and answers nothing."""
        assert check(config(**{name: 0})) == ([f"gunicorn setting {name}: refused, got 0: {SETTINGS[name].note}"], [])
        assert check(config(**{name: 2})) == ([], [])

    def test_a_logger_class_of_the_conf_file_is_refused(self) -> None:
        # gunicorn runs the conf file as module __config__.
        mine = type("Mine", (glogging.Logger,), {"__module__": "__config__"})
        for value in (mine, "__config__.Mine"):
            refusals, _ = check(config(logger_class=value))

            assert named(refusals, "logger_class")
            assert "conf file" in refusals[0]

    def test_a_logger_class_nobody_can_import_is_refused(self) -> None:
        class Local(glogging.Logger):  # type: ignore[misc,unused-ignore]
            pass

        refusals, _ = check(config(logger_class=Local))

        assert named(refusals, "logger_class")
        assert "importable by name" in refusals[0]

    def test_an_importable_logger_class_travels_as_a_name_that_gunicorn_takes(self) -> None:
        cfg = config(logger_class=Statsd)

        assert check(cfg) == ([], [])
        assert snapshot(cfg)["logger_class"] == "gunicorn.instrument.statsd.Statsd"
        assert util.load_class(snapshot(cfg)["logger_class"]) is Statsd

    @pytest.mark.parametrize("chosen", [None, "simple", "gunicorn.glogging.Logger", "gunicorn.instrument.statsd.Statsd"])
    @pytest.mark.parametrize("statsd_host", [None, "localhost:8125"])
    def test_the_logger_class_is_the_one_gunicorn_would_take(self, chosen: str | None, statsd_host: str | None) -> None:
        cfg = config(statsd_host=statsd_host, **({} if chosen is None else {"logger_class": chosen}))

        assert util.load_class(snapshot(cfg)["logger_class"], section="gunicorn.loggers") is cfg.logger_class

    @pytest.mark.parametrize(
        ("value", "place"),
        [
            ({"handlers": {"x": {"class": logging.StreamHandler}}}, "logconfig_dict['handlers']['x']['class']: must be text"),
            ({"handlers": {"x": {"()": lambda: None}}}, "logconfig_dict['handlers']['x']['()']: must be text"),
            ({"root": {"handlers": ["a", sys.stderr]}}, "logconfig_dict['root']['handlers'][1]: must be text"),
            ({"filters": {7: {}}}, "logconfig_dict['filters']: keys must be text"),
        ],
    )
    def test_a_logconfig_dict_that_json_cannot_hold_is_refused_with_the_place(self, value: dict[str, Any], place: str) -> None:
        refusals, warnings = check(config(logconfig_dict=value))

        assert len(refusals) == 1
        assert refusals[0].startswith(f"gunicorn setting {place}")
        assert warnings == []

    def test_a_tuple_in_logconfig_dict_arrives_as_a_list(self) -> None:
        cfg = config(logconfig_dict={"root": {"handlers": ("console",)}})

        assert check(cfg) == ([], [])
        assert inside(cfg).logconfig_dict == {"root": {"handlers": ["console"]}}


class TestSnapshot:
    def test_comes_back_from_json_unchanged(self) -> None:
        for cfg in (config(), *(config(**{name: other_value(name)}) for name in NAMES)):
            assert json.loads(json.dumps(snapshot(cfg))) == snapshot(cfg)

    def test_has_what_settings_declares_and_nothing_else(self) -> None:
        assert set(snapshot(Config())) == set(Settings.__annotations__)

    def test_is_a_copy(self) -> None:
        cfg = config(logconfig_dict={"root": {"level": "INFO"}})
        taken = snapshot(cfg)
        cfg.logconfig_dict["root"]["level"] = "DEBUG"

        assert taken["logconfig_dict"] == {"root": {"level": "INFO"}}

    def test_paths_do_not_depend_on_the_working_directory(self, tmp_path: Path) -> None:
        """The working directory is the process's, and any app may have changed it before the next interpreter opens its logs."""
        cfg = config(
            chdir=str(tmp_path),
            errorlog="error.log",
            accesslog="logs/access.log",
            logconfig="log.ini",
            logconfig_json="/etc/log.json",
            statsd_host="unix:statsd.sock",
        )

        taken = snapshot(cfg)

        assert taken["errorlog"] == str(tmp_path / "error.log")
        assert taken["accesslog"] == str(tmp_path / "logs" / "access.log")
        assert taken["logconfig"] == str(tmp_path / "log.ini")
        assert taken["logconfig_json"] == "/etc/log.json"
        assert taken["statsd_host"] == str(tmp_path / "statsd.sock")

    def test_standard_streams_and_logs_not_asked_for_stay(self) -> None:
        taken = snapshot(config(errorlog="-", accesslog="-", logconfig=""))

        assert (taken["errorlog"], taken["accesslog"]) == ("-", "-")
        assert (taken["logconfig"], taken["logconfig_json"], taken["statsd_host"]) == ("", None, None)

    @pytest.mark.parametrize(("value", "environment", "expected"), [(None, None, True), (False, None, False), (None, "no", False)])
    def test_sendfile_is_what_gunicorn_makes_of_it(
        self, value: bool | None, environment: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SENDFILE", raising=False)
        if environment is not None:
            monkeypatch.setenv("SENDFILE", environment)

        assert snapshot(config(sendfile=value))["sendfile"] is expected

    def test_what_the_process_has_done_is_not_done_again(self) -> None:
        """A second dup2 of stdout would undo what other interpreters set up; raw_env is in the process's environment already."""
        taken = snapshot(config(capture_output=True, errorlog="error.log", raw_env=["A=1"]))

        assert taken["capture_output"] is False
        assert taken["env"] == {}

    def test_the_parser_is_gunicorns_python_one(self) -> None:
        assert snapshot(config(http_parser="auto"))["http_parser"] == "python"

    def test_proc_name_falls_back_as_in_gunicorn(self) -> None:
        assert snapshot(config(default_proc_name="sites.toml"))["proc_name"] == "sites.toml"
        assert snapshot(config(proc_name="web"))["proc_name"] == "web"


def settings_read_by(module: str) -> set[str]:
    """Return the names that a module of gunicorn reads from anything called cfg, getattr with a literal included."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(value=ast.Name(id="cfg") | ast.Attribute(attr="cfg"), attr=name):
                found.add(name)
            case ast.Call(
                func=ast.Name(id="getattr"), args=[ast.Name(id="cfg") | ast.Attribute(attr="cfg"), ast.Constant(value=str(name)), *_]
            ):
                found.add(name)
    return found


class TestSettings:
    @pytest.mark.parametrize(
        ("module", "sample"),
        [
            ("gunicorn.http.message", "header_map"),
            ("gunicorn.http.parser", None),
            ("gunicorn.http.body", None),
            ("gunicorn.http.unreader", None),
            ("gunicorn.http", "protocol"),
            ("gunicorn.http.wsgi", "workers"),
            ("gunicorn.util", None),
            ("gunicorn.glogging", "syslog_facility"),
            ("gunicorn.instrument.statsd", "dogstatsd_tags"),
        ],
    )
    def test_has_all_that_gunicorn_reads_there(self, module: str, sample: str | None) -> None:
        """Read from gunicorn's source, so that a release that reads one more setting fails here and not in a user's request."""
        settings = inside(Config())
        read = settings_read_by(module)

        assert sample is None or sample in read, "the search itself must work"
        assert {name for name in read if not hasattr(settings, name)} == set()

    def test_a_setting_that_did_not_travel_is_named(self) -> None:
        with pytest.raises(AttributeError, match="gunicorn setting 'bind': not passed into the interpreters of apps"):
            _ = inside(Config()).bind

    def test_networks_are_those_of_gunicorn(self) -> None:
        cfg = config(forwarded_allow_ips="10.0.0.0/8,*,::1", proxy_allow_ips="*")
        settings = inside(cfg)

        assert settings.forwarded_allow_networks() == cfg.forwarded_allow_networks()
        assert settings.forwarded_allow_networks() is settings.forwarded_allow_networks()
        assert settings.proxy_allow_networks() == cfg.proxy_allow_networks() == []

    def test_a_socket_address_is_a_tuple_again(self) -> None:
        """connect() takes no list, and gunicorn's Statsd swallows the error: metrics would go nowhere in silence."""
        assert inside(config(statsd_host="localhost:9")).statsd_host == ("localhost", 9)


GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n"
REQUESTS = {
    "plain": GET + b"\r\n",
    "body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "forwarded": GET + b"X-Forwarded-Proto: https\r\nSCRIPT_NAME: /a\r\n\r\n",
    "underscore": GET + b"X_Odd: 1\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.7": b"GET / HTTP/1.7\r\nHost: x\r\n\r\n",
    "folded": GET + b"X-Long: a\r\n b\r\n\r\n",
    "space before colon": GET + b"X-Odd : 1\r\n\r\n",
    "four fields": GET + b"A: 1\r\nB: 2\r\nC: 3\r\n\r\n",
    "long field": GET + b"A: " + b"x" * 200 + b"\r\n\r\n",
    "long line": b"GET /" + b"x" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}
VARIANTS: dict[str, Mapping[str, object]] = {
    "defaults": {},
    "trusted network": {"forwarded_allow_ips": "10.0.0.0/8"},
    "trust all": {"forwarded_allow_ips": "*"},
    "own scheme header": {"forwarded_allow_ips": "*", "secure_scheme_headers": {"X-FORWARDED-PROTO": "http"}},
    "other forwarder header": {"forwarded_allow_ips": "*", "forwarder_headers": "X_ODD"},
    "header_map refuse": {"header_map": "refuse"},
    "header_map dangerous": {"header_map": "dangerous"},
    "few fields": {"limit_request_fields": 3},
    "short fields": {"limit_request_field_size": 100},
    "short line": {"limit_request_line": 100},
    "any line": {"limit_request_line": 0},
    "lenient": {
        "permit_obsolete_folding": True,
        "strip_header_spaces": True,
        "permit_unconventional_http_method": True,
        "permit_unconventional_http_version": True,
        "casefold_http_method": True,
    },
}


def parsed(cfg: object, raw: bytes) -> tuple[object, ...]:
    """Return all that a parse yields, or the error it ends with."""
    try:
        request = next(RequestParser(cfg, iter([raw]), ("10.1.2.3", 4)))
    except Exception as exc:
        return type(exc), str(exc)
    return request.method, request.uri, request.path, request.query, request.version, request.scheme, request.headers, request.body.read()


@pytest.mark.parametrize("variant", VARIANTS)
def test_requests_parse_as_with_gunicorns_config(variant: str) -> None:
    # gunicorn_h1c, where it is installed, words its errors otherwise.
    cfg = config(http_parser="python", **VARIANTS[variant])

    for name, raw in REQUESTS.items():
        assert parsed(inside(cfg), raw) == parsed(cfg, raw), name


def test_the_variants_do_change_the_parse() -> None:
    """Or the test above would prove nothing."""
    outcomes = {variant: [repr(parsed(config(**values), raw)) for raw in REQUESTS.values()] for variant, values in VARIANTS.items()}

    assert [variant for variant, outcome in outcomes.items() if outcome == outcomes["defaults"]] == ["defaults", "any line"]


@contextmanager
def logger(cfg: Any, logger_class: type[glogging.Logger] = glogging.Logger) -> Iterator[Any]:
    """Make a logger of gunicorn's, and give the process its "gunicorn.error" and "gunicorn.access" back as they were."""
    loggers = [logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")]
    before = [(each.propagate, each.level, each.handlers[:]) for each in loggers]
    for each in loggers:
        each.handlers.clear()
    try:
        yield logger_class(cfg)
    finally:
        for each, (propagate, level, handlers) in zip(loggers, before, strict=True):
            for handler in each.handlers:
                handler.close()
            each.propagate, each.handlers[:] = propagate, handlers
            each.setLevel(level)


def served(cfg: Any) -> tuple[bytes, dict[str, Any]]:
    """Serve one request with gunicorn's parts, log it, and return the bytes of the response and the environ."""
    ours, theirs = socket.socketpair()
    with ours, theirs, logger(cfg) as log:
        request = next(RequestParser(cfg, iter([REQUESTS["plain"]]), ("10.1.2.3", 4)))
        response, environ = create(request, ours, ("10.1.2.3", 4), ("10.0.0.1", 80), cfg)
        response.start_response("200 OK", [("Content-Type", "text/plain")])
        response.write(b"hello")
        response.close()
        environ["wsgi.errors"].write("from the app\n")
        log.info("served")
        log.debug("not at this level")
        log.access(response, request, environ, datetime.timedelta(seconds=1))
        ours.close()
        sent = b"".join(iter(lambda: theirs.recv(65536), b""))
    plain = {key: value for key, value in environ.items() if isinstance(value, str | bool | tuple)}
    return sent, plain


def test_response_environ_and_logs_are_as_with_gunicorns_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "http_date", lambda: "now")
    monkeypatch.setattr(glogging.Logger, "error_fmt", "%(levelname)s %(message)s")

    def run(name: str, pick: Callable[[Config], Any]) -> tuple[bytes, dict[str, Any], str, str]:
        cfg = config(
            workers=3,
            chdir=str(tmp_path),
            errorlog=str(tmp_path / f"{name}-error.log"),
            accesslog=str(tmp_path / f"{name}-access.log"),
            access_log_format='%(h)s "%(r)s" %(s)s %(b)s',
        )
        sent, environ = served(pick(cfg))
        return sent, environ, Path(cfg.errorlog).read_text(), Path(cfg.accesslog).read_text()

    real, ours = run("real", lambda cfg: cfg), run("ours", inside)

    assert ours == real
    sent, environ, error_log, access_log = ours
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert environ["wsgi.multiprocess"] is True
    assert error_log == "from the app\nINFO served\n"
    assert access_log == '10.1.2.3 "GET /a?b=c HTTP/1.1" 200 5\n'


def test_statsd_metrics_arrive() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        port = receiver.getsockname()[1]
        settings = inside(config(statsd_host=f"127.0.0.1:{port}", statsd_prefix="shop", dogstatsd_tags="a:b", errorlog=os.devnull))
        with logger(settings, util.load_class(settings.logger_class)) as statsd, statsd.sock:
            statsd.increment("hits", 1)

            assert receiver.recv(1000) == b"shop.hits:1|c|@1.0|#a:b"


def test_syslog_lines_arrive(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.settimeout(5)
        cfg = config(
            syslog=True,
            syslog_addr=f"unix://{tmp_path}/log#dgram",
            syslog_facility="local3",
            default_proc_name="sites.toml",
            errorlog=os.devnull,
        )
        with logger(inside(cfg)) as log:
            log.error("to syslog")

            assert b"gunicorn.sites.toml.error: " in receiver.recv(1000)


def test_a_logconfig_dict_is_applied(tmp_path: Path) -> None:
    cfg = config(
        errorlog=os.devnull,
        logconfig_dict={
            "handlers": {"extra": {"class": "logging.FileHandler", "filename": str(tmp_path / "extra.log")}},
            "loggers": {"gunicorn.error": {"handlers": ["extra"]}},
            "root": {},  # pytest's here; gunicorn's default would take it over
        },
    )
    with logger(inside(cfg)) as log:
        log.error("to the file")

    assert (tmp_path / "extra.log").read_text() == "to the file\n"
