"""Serve configuration files by their own server and, imported, by isowsgi; compare the answers: `make imports`.

python -m tests.imports.sidebyside [uwsgi|apache] [SOURCE...]
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import DEADLINE_S, ROOT
from tests.imports import tree
from tests.imports.expected import KINDS

# A server has so long to answer its first request.
_START_S = DEADLINE_S


class CannotRun(Exception):
    """The original server is not on this machine."""


def ask(port: int, method: str, host: str, target: str) -> tuple[int, Any]:
    """Return the status, and what an app of ours said, or None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        body = b"a=b&c=d" if method == "POST" else None
        connection.request(method, target, body, {"Host": host, "Connection": "close"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(content)
    except ValueError:
        return answer.status, None


def _listens(log: Path, pattern: str, process: subprocess.Popen[bytes]) -> int:
    if not pattern:
        return 0
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"no server listens:\n{log.read_text(errors='replace')}")


@contextmanager
def _running(command: list[str], log: Path, pattern: str, env: dict[str, str], folder: Path) -> Iterator[int]:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **env}, cwd=folder, process_group=0
        )
    try:
        yield _listens(log, pattern, process)
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what a master leaves behind, if anything
        except ProcessLookupError:
            pass
        process.wait()


# What a test must not do: become another user, go into the background, start other programs, listen on other addresses.
_NOT_IN_A_TEST = re.compile(
    r"^\s*<?\"?(uid|gid|daemonize|pidfile|chmod-socket|attach-daemon|mule|spooler|cron2?|stats|cheaper.*|worker-reload-mercy|subscribe2|processes|"
    r"reload-on-rss|limit-as|cheap|idle|unknown-thing|req-logger|logformat|http|socket|http-socket)\b.*\n",
    re.MULTILINE,
)


def _uwsgi_for(source: Path) -> list[str]:
    """Return the command of the index' uWSGI, or of Debian's for the forms that need libraries when it is built."""
    index, debian = os.environ.get("UWSGI"), shutil.which("uwsgi-core")
    if index and source.suffix == ".ini":
        return [index]
    if debian:
        return [debian, "--plugins", "python3,router_redirect"]
    raise CannotRun("no uwsgi-core with uwsgi-plugin-python3 on the PATH, nor UWSGI=PATH/bin/uwsgi of a venv with uwsgi")


@contextmanager
def uwsgi(source: Path, scratch: Path) -> Iterator[int]:
    """Run the original uWSGI, from the index; with an address of its own, and without what a test must not do."""
    program = _uwsgi_for(source)
    for path in source.parent.iterdir():
        if path.is_file():
            path.write_text(_NOT_IN_A_TEST.sub("", path.read_text()))
    form = {".ini": "--ini", ".yaml": "--yaml", ".xml": "--xml", ".json": "--json"}[source.suffix]
    # Unless it is told otherwise, uWSGI takes SIGTERM for a reload, and its workers outlive it.
    command = [*program, form, source.name, "--http-socket", "127.0.0.1:0", "--die-on-term", "--no-orphans"]
    with _running(command, scratch / "uwsgi.log", r"uwsgi socket 0 bound to TCP address 127\.0\.0\.1:(\d+)", {}, source.parent) as port:
        _wait_for_answer(port, scratch / "uwsgi.log")
        yield port


_MODULES = (
    *("mpm_event", "authz_core", "authz_host", "authn_core", "authn_file", "auth_basic", "authz_user", "alias", "env", "setenvif"),
    *("dir", "mime", "access_compat", "rewrite", "headers", "macro", "wsgi"),
)

_APACHE = """\
ServerRoot {scratch}
PidFile {scratch}/httpd.pid
DefaultRuntimeDir {scratch}
ErrorLog /dev/stderr
LogLevel info
Listen 127.0.0.1:{port}
ServerName localhost
User nobody
Group nogroup
WSGISocketPrefix {scratch}/wsgi
TypesConfig /dev/null
{modules}
LogFormat "%h" combined
<Directory />
    Require all granted
</Directory>
"""

# As for uWSGI; certificates are not there, and every host listens on the one port.
_NOT_FOR_APACHE = re.compile(
    r"^\s*(SSL|ErrorLog|CustomLog|Require valid-user|WSGIPythonOptimize).*\n|(?<![\w-])(user|group)=\S+ ?", re.MULTILINE
)


@contextmanager
def apache(source: Path, scratch: Path) -> Iterator[int]:
    """Run the original Apache with mod_wsgi, Debian's, on a port of its own."""
    program, modules = shutil.which("apache2", path=f"{os.environ['PATH']}:/usr/sbin"), Path("/usr/lib/apache2/modules")
    if program is None or not (modules / "mod_wsgi.so").exists():
        raise CannotRun("no apache2 with mod_wsgi; apt-get install apache2 libapache2-mod-wsgi-py3, with no service started")
    with socket.socket() as sock:  # Apache cannot be asked which port it got
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    for folder in (source.parent, source.parent / "conf", source) if source.is_file() else (source,):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_file() and path.suffix != ".txt":
                text = _NOT_FOR_APACHE.sub("", path.read_text()).replace("mod_ssl.c", "mod_wsgi.c")  # no certificate, so no mod_ssl
                served = "443" if "<VirtualHost *:443>" in text else "80"  # of one with both, the one that has the apps
                path.write_text(re.sub(r"(?<=<VirtualHost \*:)\d+", lambda found: str(port) if found[0] == served else "1", text))  # noqa: B023
    loads = "\n".join(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in _MODULES)
    conf = scratch / "httpd.conf"
    conf.write_text(_APACHE.format(scratch=scratch, port=port, modules=loads) + _original(source))
    for path in (scratch.parent, *scratch.parent.rglob("*")):
        path.chmod(path.stat().st_mode | 0o555)  # for Apache's user
    with _running([program, "-DFOREGROUND", "-f", str(conf)], scratch / "apache.log", r"", {}, scratch):
        _wait_for_answer(port, scratch / "apache.log")
        yield port


def _original(source: Path) -> str:
    """Return what has Apache read a source as it was: ServerRoot is where its own file lies."""
    if source.is_dir():
        return f"IncludeOptional {source}/*.conf\n"
    return f"ServerRoot {source.parent}\n" + source.read_text()


def _wait_for_answer(port: int, log: Path) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            ask(port, "GET", "localhost", "/")
            return
        except (OSError, http.client.HTTPException) as exc:
            if time.monotonic() > end:
                raise AssertionError(f"no answer: {exc}:\n{log.read_text(errors='replace')}") from exc
            time.sleep(0.05)


@contextmanager
def isowsgi(source: Path, scratch: Path) -> Iterator[int]:
    """Import a source with the command, and serve what that wrote, with the addresses and the user of this test."""
    env = {"PYTHONPATH": str(ROOT), "ISOWSGI_CACHE_DIR": str(scratch)}
    target = scratch / "isowsgi.toml"
    command = [sys.executable, "-m", "isowsgi", "import", str(source), "-o", str(target)]
    subprocess.run(command, check=True, env={**os.environ, **env}, stderr=subprocess.DEVNULL)
    command = [sys.executable, "-m", "gunicorn", "--config", str(scratch / "gunicorn.conf.py"), "--no-control-socket"]
    subprocess.run([*command, "--check-config"], check=True, env={**os.environ, **env}, cwd=scratch)
    command += ["--bind", "127.0.0.1:0", "--workers", "1", "--user", str(os.getuid()), "--group", str(os.getgid())]
    pattern = r"Listening at: http://127\.0\.0\.1:(\d+)"
    with _running(command, scratch / "gunicorn.log", pattern, env, scratch) as port:
        yield port


def _as_documented(conf: Path, name: str, scratch: Path) -> Iterator[tuple[str, str, str | None]]:
    """Compare with what Unit's documentation says: there is no Unit in the index, nor in Debian."""
    with isowsgi(conf / name, scratch) as ours:
        for host, target, app, paths in tree.expectations(name):
            status, said = ask(ours, "GET", host, target)
            got = (str(status), "")
            if said:
                is_file = "file" in said  # see `tree.STATIC`
                got = (f"file:{said['file']}", "'' ''") if is_file else (said["app"], _shown(said["script_name"], said["path_info"]))
            expected = ("404", "") if app == "-" else (app, paths)
            yield name, f"GET {host} {target}", None if got == expected else f"expected {expected}\n    isowsgi  {got}"


def _shown(*paths: str) -> str:
    return " ".join(path or repr("") for path in paths)


def _variables_together(answer: tuple[int, Any]) -> tuple[int, Any]:
    """Return an answer with the variables of SetEnv in one place: the report says that they move from the environ to os.environ."""
    status, said = answer
    return (status, {**said, "env": {**said["env"], **said["environ"]}, "environ": {}}) if said and "env" in said else answer


def compare(kind: str, sources: list[str]) -> Iterator[tuple[str, str, str | None]]:
    """Yield source, request and the difference, None if there is none."""
    serve: dict[str, Callable[[Path, Path], Any]] = {"uwsgi": uwsgi, "apache": apache}
    for name in dict.fromkeys(name for name, *_ in tree.rows(kind)):
        if sources and name not in sources:
            continue
        with tempfile.TemporaryDirectory(prefix="isi-") as folder:
            srv = tree.make(Path(folder))
            tree.make_venv(srv)
            conf = tree.copied(kind, srv)
            scratch = srv.parent / "out"
            scratch.mkdir()
            whole = conf / (name.partition("/")[0])
            try:
                if kind == "unit":
                    yield from _as_documented(conf, name, scratch)
                    continue
                with isowsgi(whole, scratch) as ours, serve[kind](conf / name, scratch) as theirs:
                    for method, host, target in tree.requests_of(kind, name):
                        expected, got = ask(theirs, method, host, target), ask(ours, method, host, target)
                        if kind == "apache":
                            expected, got = _variables_together(expected), _variables_together(got)
                        difference = None if expected == got else f"original {expected}\n    isowsgi  {got}"
                        yield name, f"{method} {host} {target}", difference
            except AssertionError as exc:
                yield name, "start", str(exc)


def main(arguments: list[str]) -> int:
    kinds = [argument for argument in arguments if argument in KINDS] or list(KINDS)
    wrong = 0
    for kind in kinds:
        try:
            for source, request, difference in compare(kind, [each for each in arguments if each not in kinds]):
                print(f"{kind} {source}: {request}: {'the same' if difference is None else difference}", flush=True)
                wrong += difference is not None
        except CannotRun as exc:
            print(f"{kind}: skipped: {exc}")
    print(f"{wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
