"""One check per kind of value: each returns the value in the form in which it is used, or raises `Fault`."""

from __future__ import annotations

import ast
import difflib
import io
import ipaddress
import keyword
import os
import re
import shlex
import shutil
import sysconfig
import unicodedata
from typing import Any, TypeVar

import attrs
from cattrs import Converter
from dotenv.parser import parse_stream

from isowsgi.configuration import pythons
from isowsgi.configuration.faults import KINDS, SOME_MOUNT, Fault, quoted, spelt, wrong_type
from isowsgi.configuration.values import ISOLATIONS, MAIN_GROUP, MAX_HEAD_TIMEOUT_S, MAX_HOST_CHARS, MAX_SECONDS, SCRIPT_SUFFIXES, App
from isowsgi.shared import policies, regularfiles, routing

T = TypeVar("T")

# Largest pyvenv.cfg that is read; they have six lines.
_MAX_PYVENV_BYTES = 64 * 1024

# Largest env_file; all variables of a process must fit into its stack's quarter (execve(2)), 2 MiB by default.
_MAX_ENV_BYTES = 2 * 1024 * 1024


@attrs.frozen
class Pattern:
    host: str
    path: str  # as written, no slash at the end

    def __str__(self) -> str:
        return self.host + (self.path or "/")


def typed(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # not isinstance: a bool is an int to Python, but not to TOML
        raise wrong_type(KINDS[kind], value)
    return value


def not_empty(value: Any) -> dict[str, Any]:
    if not typed(dict, value):
        raise Fault(SOME_MOUNT)
    return typed(dict, value)


def one_or_more(converter: Converter, value: Any, kind: Any) -> list[Any]:
    if isinstance(value, list):
        return converter.structure(value, list[kind])
    if not isinstance(value, str):
        raise wrong_type("a string or a list of strings", value)
    return [converter.structure(value, kind)]


def mapping(converter: Converter, table: dict[str, Any], key_kind: Any, value_kind: Any) -> dict[Any, Any]:
    """Build keys and values separately: cattrs does not look at a key whose value is wrong."""
    built, groups = [], []
    for side, kind in (({key: key for key in table}, dict[str, key_kind]), (table, dict[str, value_kind])):
        try:
            built.append(converter.structure(side, kind))
        except ExceptionGroup as group:
            groups.append(group)
    if groups:
        raise ExceptionGroup("keys and values", groups)
    keys, values = built
    return {keys[key]: value for key, value in values.items()}


def whole_number(value: Any, *, least: int = 1, most: int) -> int:
    if not least <= typed(int, value) <= most:
        raise Fault(f"must be {least} to {most}, got {spelt(value)}")
    return typed(int, value)


def head_timeout(value: Any) -> float:
    if type(value) not in (int, float):
        raise wrong_type("a number of seconds", value)
    if not 0 < value <= MAX_HEAD_TIMEOUT_S:
        raise Fault(f"must be above 0 and at most {MAX_HEAD_TIMEOUT_S} seconds, got {spelt(value)}")
    return float(value)


def time_limit(value: Any) -> float:
    if type(value) not in (int, float):
        raise wrong_type("a number of seconds", value)
    if not 0 <= value <= MAX_SECONDS:
        raise Fault(f"must be 0 (no limit) to {MAX_SECONDS} seconds, got {spelt(value)}")
    return float(value)


def one_of(value: Any, *, names: tuple[str, ...]) -> str:
    if typed(str, value) not in names:
        raise Fault(f"expected one of {', '.join(map(repr, names))}, got {spelt(value)}")
    return typed(str, value)


def one_of_numbers(value: Any, *, numbers: tuple[int, ...]) -> int:
    if typed(int, value) not in numbers:
        raise Fault(f"expected one of {', '.join(map(str, numbers))}, got {spelt(value)}")
    return typed(int, value)


def redirect(value: Any) -> str:
    """Check where a mount's requests are sent; nothing that a client sends may choose the host."""
    example = 'expected an address such as "https://www.example.com{path}" or "/new{path}"'
    if not typed(str, value).isascii() or not value.isprintable() or not set(' "<>\\^`|').isdisjoint(value):
        raise Fault(f"{example}, percent-encoded where it holds other characters, got {spelt(value)}")
    fixed, _, rest = value.partition("{path}")
    if set("{}") & set(fixed + rest):
        raise Fault(f"{{path}} may stand in it once, and no other brace, got {spelt(value)}")
    if "#" in value or "?" in fixed:
        raise Fault(f"expected no fragment, and {{path}} before the query, got {spelt(value)}")
    if not re.match(r"https?://[^/?@]+(/|\?|$)|/(?!/)[^?]*", fixed) or (fixed == "/" and fixed != value):
        raise Fault(f"{example}, got {spelt(value)}: a client must not be able to choose the host")
    return typed(str, value)


def url_path(value: Any) -> str:
    if not typed(str, value).startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
        raise Fault(f"expected a path below the mount as a browser sends it, such as '/health', got {spelt(value)}")
    return typed(str, value)


def policy_word(value: str) -> str:
    if value in policies.WORDS:
        return value
    # By the names of the functions too: "setuid" is a likely slip for "ids".
    meant = {call.rpartition(".")[2]: word for call, word in (policies.EVENTS | policies.FUNCTIONS).items()}
    meant |= {word: word for word in policies.WORDS}
    near = difflib.get_close_matches(value.lower(), meant, n=1)
    expected = f"did you mean {meant[near[0]]!r}?" if near else f"expected one of {', '.join(policies.WORDS)}"
    raise Fault(f"unknown word; {expected}")


def network(value: Any) -> str:
    if typed(str, value) == "unix":
        return "unix"
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as exc:
        text = "its address has bits below the prefix; " if "host bits" in str(exc) else ""
        raise Fault(f"{text}expected an address, a network such as '10.0.0.0/8', or 'unix', got {spelt(value)}") from None


def host_name(value: Any) -> str:
    if not typed(str, value):
        raise Fault("expected a host name, got ''")
    return _host(value, value + "/")


def new_path(value: Any, *, folder: str) -> str:
    return _path(value, folder)[0]


def new_file(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    if os.path.isdir(path):
        raise Fault(f"expected a file, got the folder {shown}")
    return _in_existing_folder(path, shown)


def new_folder(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    if os.path.exists(path) and not os.path.isdir(path):
        raise Fault(f"expected a folder, got the file {shown}")
    return _in_existing_folder(path, shown)


def _in_existing_folder(path: str, shown: str) -> str:
    if "\0" in path or not os.path.isdir(os.path.dirname(path)):
        raise Fault(f"expected a path in an existing folder, got {shown}")
    return path


def isolation(value: Any, *, own_gil_error: str | None) -> str:
    one_of(value, names=ISOLATIONS)
    if value == "own-gil" and own_gil_error is not None:
        raise Fault(own_gil_error)
    return typed(str, value)


def _path(value: Any, folder: str) -> tuple[str, str]:
    """Return a path as an absolute one, and how to show it in a fault."""
    if not typed(str, value):
        raise Fault("expected a path, got ''")
    expanded = os.path.expanduser(value)
    if expanded.startswith("~") and (value.startswith("~/") or value == "~"):
        raise Fault(
            f"write the absolute path: uid {os.getuid()} has no home folder, neither by HOME nor in the user database, got {value!r}"
        )
    path = os.path.abspath(os.path.join(folder, expanded))
    return path, repr(value) if path == value else f"{value!r} (that is {path!r})"


def folder(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    if not os.path.isdir(path):
        raise Fault(f"expected an existing folder, got {shown}")
    return path


def venv(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    try:
        text = _pyvenv_cfg(path)
    except (OSError, regularfiles.NotRegular, ValueError):  # ValueError: a NUL in the path
        raise Fault(f"expected a virtual environment (a folder with pyvenv.cfg), got {shown}") from None
    if _venv_version(text) is None:
        raise Fault(f"expected a Python version in its pyvenv.cfg, got none in {shown}")
    return path


def _pyvenv_cfg(venv: str) -> str:
    return regularfiles.read(os.path.join(venv, "pyvenv.cfg"), _MAX_PYVENV_BYTES).decode(errors="replace")


def _venv_version(text: str) -> tuple[int, int] | None:
    # venv writes `version`, uv `version_info`, virtualenv both.
    found = re.search(r"^\s*version(?:_info)?\s*=\s*(\d+)\.(\d+)", text, re.MULTILINE | re.IGNORECASE)
    return None if found is None else (int(found[1]), int(found[2]))


def venv_fault(venv: str, wanted: tuple[int, int], python: str | None) -> str | None:
    """Say why a venv, checked by `venv`, is none of the Python that runs the app, or return None."""
    try:
        version = _venv_version(_pyvenv_cfg(venv))
    except (OSError, regularfiles.NotRegular):  # it was there a moment ago
        version = None
    again = f"recreate it with python{wanted[0]}.{wanted[1]} -m venv --clear {shlex.quote(venv)}"
    if version is not None and version != wanted:
        runs_on = f"gunicorn runs on Python {wanted[0]}.{wanted[1]}" if python is None else f"{python!r} is Python {wanted[0]}.{wanted[1]}"
        own = os.path.join(venv, "bin", "python")
        if python is None and version >= pythons.oldest_version() and os.path.exists(own):
            again += f", or set python = {quoted(own)} to run the app on that Python, in its own process"
        return f"made for Python {version[0]}.{version[1]}, but {runs_on}; {again}"
    packages = f"lib/python{wanted[0]}.{wanted[1]}/site-packages"
    if wanted == pythons.HOST:
        packages = os.path.relpath(sysconfig.get_path("purelib", "venv", vars={"base": venv}), venv)
    if not os.path.isdir(os.path.join(venv, packages)):
        return f"expected the folder {packages!r} in {venv!r}, got none; {again}"
    return None


def python(value: Any, *, folder: str) -> str:
    """Return the absolute path of another Python: a path, or the name of a command."""
    found = None if os.sep in typed(str, value) else shutil.which(value)
    path = os.path.abspath(found) if found else _path(value, folder)[0]
    try:
        return pythons.ask(path).path
    except pythons.UnusableError as exc:
        raise Fault(str(exc)) from exc


def group(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", typed(str, value)):
        raise Fault(f"expected a name of letters, digits, '_', '.' and '-', got {spelt(value)}")
    if value == MAIN_GROUP:
        raise Fault(f'{MAIN_GROUP!r} is the group of the mounts with isolation = "main"; choose another name')
    return typed(str, value)


def env_name(value: Any) -> str:
    if not value or "=" in value or "\0" in value:
        raise Fault("expected a name that is not empty and holds no '=' and no NUL")
    if value == "SCRIPT_NAME":
        raise Fault("remove it: the mount's pattern says it")
    return typed(str, value)


def env_value(value: Any) -> str:
    if not isinstance(value, (str, list, dict)):
        raise Fault(f'{wrong_type("a string", value)}; write it in quotes: "{spelt(value)}"')
    if "\0" in typed(str, value):
        raise Fault("expected a string without NUL")
    return typed(str, value)


def env_file(value: Any, *, folder: str) -> dict[str, str]:
    """Read a file of NAME=value lines as python-dotenv does, but for two things.

    `${NAME}` stays as written: it would be filled from the environment of gunicorn, which is not the app's, and passwords hold `$`.
    A line that does not parse, or that holds a name alone, is a fault: python-dotenv logs a warning and leaves it out.
    """
    path, shown = _path(value, folder)
    try:
        text = regularfiles.read(path, _MAX_ENV_BYTES).decode("utf-8-sig")  # some editors put a byte order mark before it
    except UnicodeDecodeError as exc:
        raise Fault(f"expected UTF-8, got byte {exc.object[exc.start]:#04x} in {shown}") from exc
    except regularfiles.NotRegular as exc:
        raise Fault(f"expected a readable file, got {exc}: {shown}") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise Fault(f"expected a readable file, got {shown}") from exc
    faults, env = [], {}
    for binding in parse_stream(io.StringIO(text, newline=None)):
        source = binding.original.string
        if binding.key is None and not binding.error:
            continue  # a comment or an empty line
        try:
            if binding.key is None or binding.value is None:
                raise Fault(f"expected NAME=value, got {spelt(source.strip())}")
            env[env_name(binding.key)] = env_value(binding.value)
        except Fault as fault:
            line = binding.original.line + source[: len(source) - len(source.lstrip())].count("\n")
            name = f"{binding.key}: " if binding.value is not None else ""
            faults.append(Fault(f"{value!r}, line {line}: {name}{fault}"))
    if faults:
        raise ExceptionGroup("env_file", faults)
    return env


# Patterns.


def new_addresses(text: str, table: Any, seen: dict[Pattern, str], where: str) -> tuple[Pattern, ...]:
    """Return what a mount takes, and note it as taken; its pattern comes first.

    Args:
        text: the key in the file.
        table: its value there, whose faults are told elsewhere.
        seen, where: see `converter.make_converter`.
    """
    found = _addresses(text, table)
    for address in found:
        if address in seen:
            what = "" if len(found) == 1 else f"{quoted(str(address))} is "
            raise Fault(f"{what}the same pattern as {seen[address]}; keep one of them")
    seen.update(dict.fromkeys(found, quoted(text) + where))
    return found


def addresses_of(mounts: Any) -> list[tuple[Pattern, ...]]:
    """Return what the mounts of a table take that has faults, as far as that is in order."""
    found = []
    for text, table in mounts.items() if isinstance(mounts, dict) else ():
        try:
            found.append(_addresses(text, table))
        except Fault:
            continue
    return found


def _addresses(text: str, table: Any) -> tuple[Pattern, ...]:
    own = pattern(text)
    hosts = table.get("hosts", []) if isinstance(table, dict) else []
    found = [own] if own.host else []
    for host in hosts if isinstance(hosts, list) else [hosts]:
        try:
            found.append(Pattern(mount_host(host), own.path))
        except Fault:
            continue  # told at its place
    return tuple(dict.fromkeys(found)) or (own,)


def glob_pattern(value: Any) -> str:
    if not typed(str, value) or "\0" in value:
        raise Fault(f'expected a glob of config files, as in "sites.d/*.toml", got {spelt(value)}')
    return str(value)


def pattern(value: str) -> Pattern:
    """Read `[host]/prefix`, as the keys of Go's ServeMux; "/blog/" is "/blog"."""
    if not value:
        raise Fault('expected a pattern, as in "/blog" or "api.example.com/", got \'\'')
    if any(char.isspace() or unicodedata.category(char) == "Cc" for char in value):
        raise Fault(f"a pattern may not hold spaces and control characters, got {spelt(value)}")
    if "://" in value:
        raise Fault(f"expected a pattern without a scheme: {value.partition('://')[2]!r}")
    host, slash, rest = value.partition("/")
    host = _any_host(host, value) if host else ""
    if not slash:
        raise Fault(f"write {quoted(value + '/')} for the whole host")
    path = slash + rest
    if found := re.search("%[0-9A-Fa-f]{2}", path):
        raise Fault(f"write it decoded: requests are matched after percent-decoding, got {found[0]!r}")
    if found := re.search(r"[?#]", path):
        raise Fault(f"a pattern is a path: no query and no fragment, got {found[0]!r}")
    if found := re.search(r"//|/\.\.?(?=/|$)", path):
        raise Fault(f"expected no '//', '.' or '..': no request path is normalised, so they would be matched literally, got {found[0]!r}")
    return Pattern(host, path.removesuffix("/"))


def mount_hosts(converter: Converter, value: Any, kind: Any) -> tuple[str, ...]:
    if value == []:
        raise Fault("expected a host, or a list of hosts, got an empty list")
    return tuple(one_or_more(converter, value, kind))


def mount_host(value: Any) -> str:
    """Check a host at which a mount is served, beside that of its pattern or in place of none."""
    host, slash, _ = typed(str, value).partition("/")
    if not host:
        raise Fault(f"expected a host, as in 'www.example.com', got {spelt(value)}")
    if slash:
        raise Fault(f"expected a host alone, {host!r}: the path is the pattern's; got {spelt(value)}")
    return _any_host(host, host + "/")


def _any_host(host: str, pattern: str) -> str:
    """Check a host, or a wildcard for hosts.

    Args:
        pattern: that it is from, whose slash may be missing.
    """
    if "*" not in host:
        return _host(host, pattern)
    star, _, domain = host.partition(".")
    if star != "*" or not domain or "*" in domain or domain.startswith("["):
        raise Fault(f"'*' stands for the whole first label of a host, as in '*.example.com/', got {host!r}")
    return routing.WILDCARD + _host(domain, domain + "/")


def _host(host: str, pattern: str) -> str:
    if not host.isascii() and ("." in host or "/" in pattern):
        raise Fault(f"a host must be ASCII, got {host!r}; write the form that begins with 'xn--'")
    if found := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]", host):
        try:
            return f"[{ipaddress.IPv6Address(found[1])}]"
        except ValueError:
            raise Fault(f"expected an IPv6 address in brackets, got {host!r}") from None
    if found := re.fullmatch(r"(.*[^:]):\d*", host):
        raise Fault(f"expected a host without a port, got {host!r}; ports belong to gunicorn's bind")
    if "/" not in pattern and "." not in host and host.lower() != "localhost":
        raise Fault(f"expected {'/' + pattern!r} (a pattern begins with a slash or a host), got {pattern!r}")
    name = host.lower().removesuffix(".")
    if len(name) > MAX_HOST_CHARS or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", name):
        raise Fault(f"expected a host of letters, digits, '-', '_' and '.', got {host!r}")
    return name


# The app's grammar: gunicorn's `module:attribute`, and mod_wsgi's script files.


def app(value: Any, *, folder: str) -> App:
    """Read "module", "module:name", "module:factory('x', debug=True)", "path.wsgi" or "path.wsgi:name"."""
    target, colon, call = typed(str, value).partition(":")
    if not target:
        raise Fault(f"expected an app, as in 'shop.wsgi:application' or 'shop/app.wsgi', got {spelt(value)}")
    call = _call(call, value) if colon else "application"
    # "shop.wsgi:application" is the attribute of a module, "shop.wsgi" alone a file: only a slash makes a file of the former.
    if "/" in target or (not colon and target.endswith(SCRIPT_SUFFIXES)):
        path, shown = _path(target, folder)
        if not os.path.isfile(path):
            module = "" if "/" in target else f"; for the module write {target + ':application'!r}"
            raise Fault(f"expected an existing script file, got {shown}{module}")
        return App(kind="script", target=path, call=call)
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in target.split(".")):
        raise Fault(f"expected a dotted module name, got {spelt(target)}; a path to a script holds a slash")
    return App(kind="module", target=target, call=call)


def module(value: Any) -> str:
    """Check the dotted name of a module."""
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in typed(str, value).split(".")):
        raise Fault(f"expected a module's name such as 'sqlalchemy.orm', got {spelt(value)}")
    return typed(str, value)


def hook(value: Any) -> str:
    """Check an import string of a function."""
    module, _, function = typed(str, value).partition(":")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in (*module.split("."), function)):
        raise Fault(f"expected 'module:function', got {spelt(value)}")
    return typed(str, value)


def _call(call: str, app: str) -> str:
    """Check what stands after the colon as gunicorn does at run time: a name, or a call of a name with literal arguments."""
    wrong = Fault(f"expected a name or a call with literal arguments after ':', as in create_app(debug=True), got {spelt(app)}")
    try:
        expression = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    if isinstance(expression, ast.Name):
        return call
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise wrong
    for argument in [*expression.args, *(word.value for word in expression.keywords)]:
        try:
            ast.literal_eval(argument)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            source = ast.get_source_segment(call, argument)
            raise Fault(f"expected literal arguments, got {source!r} in {spelt(app)}; compute it inside the factory") from None
    if any(word.arg is None for word in expression.keywords):
        raise wrong
    return call
