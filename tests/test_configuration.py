"""The config file: what it becomes, and what is said when it is wrong."""

import datetime
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isowsgi.configuration import App, Config, ConfigError, Mount, Status, foreign, load, pythons
from isowsgi.configuration.tables import MountTable, RedirectTable, WorkerTable
from isowsgi.configuration.values import spellings_of
from isowsgi.shared import policies, regularfiles
from tests.conftest import eventually, examples

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE_PACKAGES = f"lib/python{PYTHON}{'t' if 't' in sys.abiflags else ''}/site-packages"

Write = Callable[[str], Config]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, as for `gunicorn isowsgi.toml`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Write:
    """Write a text as isowsgi.toml and load it."""

    def read(text: str) -> Config:
        (folder / "isowsgi.toml").write_text(text, encoding="utf-8")
        return load("isowsgi.toml")

    return read


def faults(read: Write, text: str) -> list[str]:
    """Return the faults of a file, without the file's name, which must begin each."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value) == "\n".join(caught.value.faults)
    assert all(fault.startswith("isowsgi.toml: ") for fault in caught.value.faults)
    return [fault.removeprefix("isowsgi.toml: ") for fault in caught.value.faults]


def mount(read: Write, table: str, *, rest: str = "") -> Mount:
    """Return the one mount, at "/", of a file with this table."""
    (only,) = read(f'[mounts."/"]\n{table}\n{rest}').mounts
    return only


# What a good file becomes.


def test_the_short_form_names_the_app_and_leaves_the_rest_at_its_default(read: Write, folder: Path) -> None:
    config = read('[mounts]\n"/" = "shop.wsgi:application"\n')

    root = Mount(
        pattern="/",
        host="",
        prefix="",
        app=App(kind="module", target="shop.wsgi", call="application"),
        pythonpath=(str(folder),),
        venv=None,
        env={},
        threads=None,
        isolation="auto",
        instances=1,
    )
    assert config == Config(path=str(folder / "isowsgi.toml"), mounts=(root,), head_timeout=20.0)


def test_a_long_and_an_inline_table_mean_the_same(read: Write, folder: Path) -> None:
    (folder / "lib").mkdir()
    inline = read('[mounts]\n"/blog" = { app = "blog:create_app()", pythonpath = ["lib"], threads = 8, instances = 2 }\n')
    long = read('[mounts."/blog"]\napp = "blog:create_app()"\npythonpath = "lib"\nthreads = 8\ninstances = 2\n')

    assert inline == long
    assert (long.mounts[0].threads, long.mounts[0].instances) == (8, 2)
    assert long.mounts[0].pythonpath == (str(folder / "lib"),)


def test_mounts_keep_the_order_of_the_file(read: Write) -> None:
    config = read('[mounts]\n"/b" = "b"\n"/" = "root"\n"/a" = "a"\n')

    assert [mount.pattern for mount in config.mounts] == ["/b", "/", "/a"]


def test_a_mount_is_hashable_and_its_tables_travel_as_json(read: Write) -> None:
    """A reload compares mounts; a boot passes one as JSON text into the interpreter."""
    first, again = (mount(read, 'app = "a"\nenv = { A = "1" }') for _ in range(2))

    assert {first: "generation 3"}[again] == "generation 3"
    assert json.loads(json.dumps(attrs.asdict(first)))["env"] == {"A": "1"}


@pytest.mark.parametrize(("written", "seconds"), [("1", 1.0), ("0.5", 0.5), ("3600", 3600.0)])
def test_the_head_timeout_is_a_number_of_seconds(read: Write, written: str, seconds: float) -> None:
    assert read(f'acceptor.head_timeout = {written}\n[mounts]\n"/" = "a"\n').head_timeout == seconds


@pytest.mark.parametrize(
    ("written", "pattern", "host", "prefix"),
    [
        ("/", "/", "", ""),
        ("/blog", "/blog", "", "/blog"),
        ("/blog/", "/blog", "", "/blog"),
        ("/a/b.c/...", "/a/b.c/...", "", "/a/b.c/..."),
        ("/100%", "/100%", "", "/100%"),
        ("/Blog", "/Blog", "", "/Blog"),
        ("/bücher", "/bücher", "", "/b\u00c3\u00bccher"),
        ("api.example.com/", "api.example.com/", "api.example.com", ""),
        ("API.Example.com/V1/", "api.example.com/V1", "api.example.com", "/V1"),
        ("api.example.com./v1", "api.example.com/v1", "api.example.com", "/v1"),
        ("localhost/x", "localhost/x", "localhost", "/x"),
        ("xn--bcher-kva.example/", "xn--bcher-kva.example/", "xn--bcher-kva.example", ""),
        ("127.0.0.1/", "127.0.0.1/", "127.0.0.1", ""),
        ("[::1]/x", "[::1]/x", "[::1]", "/x"),
        ("[2001:DB8:0::1]/", "[2001:db8::1]/", "[2001:db8::1]", ""),
        ("*.Example.com/", "*.example.com/", "*.example.com", ""),
        ("*.localhost/v1/", "*.localhost/v1", "*.localhost", "/v1"),
    ],
)
def test_a_pattern_is_a_host_and_a_prefix(read: Write, written: str, pattern: str, host: str, prefix: str) -> None:
    (only,) = read(f'[mounts]\n"{written}" = "a"\n').mounts

    assert (only.pattern, only.host, only.prefix) == (pattern, host, prefix)


def test_the_same_prefix_on_two_hosts_is_two_patterns(read: Write) -> None:
    assert len(read('[mounts]\n"/v1" = "a"\n"a.example/v1" = "a"\n"b.example/v1" = "a"\n"/V1" = "a"\n').mounts) == 4


@pytest.mark.parametrize(
    ("pattern", "hosts", "name", "all_of_them"),
    [
        ("/", '"a.example"', "a.example/", ["a.example"]),
        ("/v1/", '["A.example.", "*.a.example", "a.example"]', "a.example/v1", ["a.example", "*.a.example"]),
        ("b.example/", '["a.example", "b.example"]', "b.example/", ["b.example", "a.example"]),
    ],
)
def test_a_mount_with_several_hosts_has_the_name_of_the_first(
    read: Write, pattern: str, hosts: str, name: str, all_of_them: list[str]
) -> None:
    (only,) = read(f'[mounts]\n"{pattern}" = {{ app = "a", hosts = {hosts} }}\n').mounts

    assert (only.pattern, [only.host, *only.hosts]) == (name, all_of_them)


def test_a_path_may_be_in_a_file_once_for_each_host(read: Write) -> None:
    mounts = read('[mounts]\n"/" = { app = "a", hosts = ["a.example"] }\n"a.example/v1" = "a"\n"b.example/" = "a"\n').mounts

    assert [mount.pattern for mount in mounts] == ["a.example/", "a.example/v1", "b.example/"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '"a.example/" = "a"\n"/" = { app = "a", hosts = "A.example" }',
            ['mounts."/": the same pattern as "a.example/"; keep one of them'],
        ),
        (
            '"b.example/" = { app = "a", hosts = ["a.example"] }\n"c.example/" = { app = "a", hosts = ["a.example"] }',
            ['mounts."c.example/": "a.example/" is the same pattern as "b.example/"; keep one of them'],
        ),
        ('"/" = { app = "a", hosts = [] }', ['mounts."/".hosts: expected a host, or a list of hosts, got an empty list']),
        (
            '"/" = { app = "a", hosts = ["a.example/x", "", 1, "a.example:80", "a.*.example"] }',
            [
                "mounts.\"/\".hosts[0]: expected a host alone, 'a.example': the path is the pattern's; got 'a.example/x'",
                "mounts.\"/\".hosts[1]: expected a host, as in 'www.example.com', got ''",
                'mounts."/".hosts[2]: expected a string, got 1 (a whole number)',
                "mounts.\"/\".hosts[3]: expected a host without a port, got 'a.example:80'; ports belong to gunicorn's bind",
                "mounts.\"/\".hosts[4]: '*' stands for the whole first label of a host, as in '*.example.com/', got 'a.*.example'",
            ],
        ),
        *(
            (
                f'"{host}/" = "a"',
                [f"mounts.\"{host}/\": '*' stands for the whole first label of a host, as in '*.example.com/', got '{host}'"],
            )
            for host in ("*", "*.", "*.*.example", "a*.example", "www.*", "*.[::1]")
        ),
        ('"*.example" = "a"', ['mounts."*.example": write "*.example/" for the whole host']),
        (
            '"*.a b.example/" = "a"',
            ["mounts.\"*.a b.example/\": a pattern may not hold spaces and control characters, got '*.a b.example/'"],
        ),
    ],
)
def test_hosts_that_are_wrong_or_taken_are_told(read: Write, text: str, expected: list[str]) -> None:
    assert faults(read, f"[mounts]\n{text}\n") == expected


@pytest.mark.parametrize(
    ("pattern", "table", "expected"),
    [
        (
            "*.example/",
            'pythonpath = "t/{1}"',
            "pythonpath: '{1}' stands for a tenant's label; set max_live too, or write the path without it",
        ),
        ("*.example/", 'exists = "t/{1}"', "exists: it is for tenants; set max_live too: how many of them have an instance at a time"),
        (
            "a.example/",
            "max_live = 3",
            "max_live: tenants are the hosts of a wildcard: expected a pattern such as '*.example.com/', got 'a.example/'",
        ),
        ("*.example/", "max_live = 3\nlazy = false", "lazy: a tenant is always loaded at its first request"),
        ("*.example/", 'max_live = 3\nlog = "{1}.log"', "log: '{1}' does not stand for the tenant here; it may stand in env, "),
        ("*.example/", 'max_live = 3\nwarmup = "/{1}"', "warmup: '{1}' does not stand for the tenant here; it may stand in env, "),
        ("*.example/", "max_live = 1000\nthreads = 64", "max_live: max_live x instances x threads are too many threads for a worker: "),
        ("*.example/", "max_live = 0", "max_live: must be 1 to 1000, got 0"),
        ("*.example/", 'max_live = 3\ngroup = "g"', "group: each tenant has its own instance; remove the group"),
        ("*.example/", 'max_live = 3\nexists = "t"', "exists: expected a path with '{1}' for the tenant's label, got '"),
        ("*.example/", 'max_live = 3\nhosts = "*.test"', "hosts: a tenant has one host; remove hosts, or write one more pattern"),
        (
            "*.example/",
            'max_live = 3\nisolation = "main"',
            "isolation: there is one main interpreter, and each tenant has its own instance",
        ),
    ],
)
def test_a_template_that_is_wrong_is_told(read: Write, pattern: str, table: str, expected: str) -> None:
    found = faults(read, f'[mounts."{pattern}"]\napp = "a"\n{table}\n')

    assert found[0].startswith(f'mounts."{pattern}".{expected}')


def test_a_redirect_has_no_app_and_nothing_of_the_defaults(read: Write) -> None:
    text = '[defaults]\ngroup = "g"\nenv = { A = "1" }\n[mounts]\n"/" = { redirect = "https://a.example{path}", hosts = "b.example" }\n'
    (only,) = read(text).mounts

    assert (only.pattern, only.redirect, only.status, str(only.app)) == ("b.example/", "https://a.example{path}", 302, "-")
    assert (only.group, only.env, only.lazy) == (None, {}, True)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('redirect = "/{path}"', "redirect: expected an address such as "),
        ('redirect = "https://[{path}"', "redirect: expected a host, and a port of 1 to 65535 if any, in 'https://['"),
        ('redirect = "https://a:b{path}"', "redirect: expected a host, and a port of 1 to 65535 if any, in 'https://a:b'"),
        ('redirect = "https://a b{path}"', "redirect: expected an address such as "),
        ('redirect = "https://a..b/{path}"', "redirect: expected a host of letters, digits, "),
        ('redirect = "/old/new{path}"', "redirect: '/old/new{path}' is this mount's own address, so it would never end"),
        ('redirect = "/new{path}"\nstatus = 200', "status: expected one of 301, 302, 303, 307, 308, got 200"),
        ('redirect = "/new{path}"\nthreads = 2', "threads: unknown key; expected one of hosts, redirect, status"),
    ],
)
def test_a_redirect_that_is_wrong_is_told(read: Write, table: str, expected: str) -> None:
    assert faults(read, f'[mounts."/old"]\n{table}\n')[0].startswith(f'mounts."/old".{expected}')


def test_a_redirect_may_lead_below_its_own_address_if_that_is_another_mounts(read: Write) -> None:
    text = '[mounts]\n"/" = { redirect = "/new{path}" }\n"/new" = "a"\n"*.b.example/" = { redirect = "https://[::1]:8000{path}" }\n'

    assert [mount.redirect for mount in read(text).mounts] == ["/new{path}", "", "https://[::1]:8000{path}"]


@pytest.mark.parametrize("written", ['shop.example.com = "a"', '[mounts.shop.example.com]\napp = "a"', 'shop.example.com.app = "a"'])
def test_a_host_without_quotes_is_told_in_one_line(read: Write, written: str) -> None:
    """TOML makes tables in tables of it, and three faults told of those."""
    (found,) = faults(read, f"[mounts]\n{written}\n")

    assert found == 'mounts.shop: a pattern with dots stands in quotes: "shop.example.com/" = ...'


def test_a_misspelt_key_is_no_part_of_a_host(read: Write) -> None:
    assert any("did you mean 'app'" in each for each in faults(read, '[mounts.shop]\nap = "a"\n'))


@pytest.mark.parametrize(
    ("written", "target", "call"),
    [
        ("shop", "shop", "application"),
        ("shop.wsgi:application", "shop.wsgi", "application"),
        ("shop.wsgi:app", "shop.wsgi", "app"),
        ("blog:create_app()", "blog", "create_app()"),
        ("blog:create_app('x', debug=True)", "blog", "create_app('x', debug=True)"),
        ("blog:create_app({'a': [1, -2.5, None]}, b=(b'x',))", "blog", "create_app({'a': [1, -2.5, None]}, b=(b'x',))"),
        ("blog:create_app('/etc/blog.py')", "blog", "create_app('/etc/blog.py')"),
        ("blog:create_app('a:b')", "blog", "create_app('a:b')"),
    ],
)
def test_a_module_app_is_written_as_for_gunicorn(read: Write, written: str, target: str, call: str) -> None:
    assert mount(read, f'app = "{written}"').app == App(kind="module", target=target, call=call)


@pytest.mark.parametrize(
    ("written", "file", "call"),
    [
        ("api/v1.wsgi", "api/v1.wsgi", "application"),
        ("api/v1.wsgi:app", "api/v1.wsgi", "app"),
        ("api/v1.wsgi:make('a:b', x='/')", "api/v1.wsgi", "make('a:b', x='/')"),
        ("shop.wsgi", "shop.wsgi", "application"),
        ("./shop.wsgi:app", "shop.wsgi", "app"),
        ("app.py", "app.py", "application"),
        ("api/without_a_suffix", "api/without_a_suffix", "application"),
    ],
)
def test_a_script_app_is_a_file(read: Write, folder: Path, written: str, file: str, call: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).touch()

    assert mount(read, f'app = "{written}"').app == App(kind="script", target=str(folder / file), call=call)


def test_paths_are_relative_to_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = folder / "conf"
    for name in ("conf/lib", "home/lib"):
        (folder / name).mkdir(parents=True)
    for name in ("app.wsgi", "home/app.wsgi"):
        (folder / name).touch()
    (folder / "conf/a.env").write_text("A=1")
    (conf / "x.toml").write_text(
        '[mounts."/a"]\napp = "../app.wsgi"\nenv_file = "a.env"\npythonpath = ["lib", "."]\n'
        '[mounts."/b"]\napp = "~/app.wsgi"\npythonpath = "~/lib"\n'
    )
    monkeypatch.setenv("HOME", str(folder / "home"))

    config = load(Path("conf/x.toml"))

    assert config.path == str(conf / "x.toml")
    assert [mount.app.target for mount in config.mounts] == [str(folder / "app.wsgi"), str(folder / "home/app.wsgi")]
    assert [mount.pythonpath for mount in config.mounts] == [(str(conf / "lib"), str(conf)), (str(folder / "home/lib"),)]
    assert config.mounts[0].env == {"A": "1"}


# [defaults]


def test_defaults_hold_where_a_mount_says_nothing(read: Write, folder: Path) -> None:
    (folder / "lib").mkdir()
    config = read(
        '[defaults]\nthreads = 4\ninstances = 2\nisolation = "shared-gil"\npythonpath = "lib"\n'
        '[mounts]\n"/a" = "a"\n"/b" = { app = "b", threads = 1, isolation = "auto", pythonpath = [] }\n'
    )

    a, b = config.mounts
    assert (a.threads, a.instances, a.isolation, a.pythonpath) == (4, 2, "shared-gil", (str(folder / "lib"),))
    assert (b.threads, b.instances, b.isolation, b.pythonpath) == (1, 2, "auto", ())


def test_the_environment_merges_name_by_name_and_the_mount_wins(read: Write, folder: Path) -> None:
    """The mount's env_file too wins over the defaults' env: what is nearer to the app wins."""
    (folder / "default.env").write_text("A=default file\nB=default file\nC=default file\nD=default file\nE=default file\n")
    (folder / "one.env").write_text("C=one\nD=one\nE=one\n")
    (folder / "two.env").write_text("D=two\nE=two\n")

    only = mount(
        read,
        'app = "a"\nenv_file = ["one.env", "two.env"]\nenv = { E = "env" }',
        rest='[defaults]\nenv_file = "default.env"\nenv = { B = "default env", C = "default env" }',
    )

    assert only.env == {"A": "default file", "B": "default env", "C": "one", "D": "two", "E": "env"}


# env_file


def test_an_env_file_is_read_as_python_dotenv_does(read: Write, folder: Path) -> None:
    (folder / "a.env").write_text("# comment\n\nexport A=1\nB='two words' # comment\nC=\"a\\nb\"\nD=\nE = ü\n", encoding="utf-8")

    assert mount(read, 'app = "a"\nenv_file = "a.env"').env == {"A": "1", "B": "two words", "C": "a\nb", "D": "", "E": "ü"}


def test_nothing_of_gunicorns_environment_gets_into_an_env_file(read: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python-dotenv fills in ${NAME} from os.environ, which is not the app's."""
    monkeypatch.setenv("SECRET", "of the host")
    (folder / "a.env").write_text("PASSWORD=a${SECRET}b$SECRET\n")

    assert mount(read, 'app = "a"\nenv_file = "a.env"').env == {"PASSWORD": "a${SECRET}b$SECRET"}


def test_an_env_file_that_is_no_file_holds_nobody(read: Write, folder: Path) -> None:
    """A FIFO: gunicorn's master waited for somebody to write to it."""
    os.mkfifo(folder / "fifo.env")

    assert faults(read, '[mounts."/"]\napp = "a"\nenv_file = ["fifo.env", "/dev/zero"]\n') == [
        f"""mounts."/".env_file[0]: expected a readable file, got a FIFO: 'fifo.env' (that is '{folder}/fifo.env')""",
        """mounts."/".env_file[1]: expected a readable file, got a device: '/dev/zero'""",
    ]


def test_each_wrong_line_of_an_env_file_is_a_fault_with_its_number(read: Write, folder: Path) -> None:
    (folder / "a.env").write_text("A=1\n\n\n'no end\nNAME_ALONE\nSCRIPT_NAME=/x\n")

    assert faults(read, '[mounts."/"]\napp = "a"\nenv_file = ["a.env"]\n') == [
        """mounts."/".env_file[0]: 'a.env', line 4: expected NAME=value, got "'no end\"""",
        """mounts."/".env_file[0]: 'a.env', line 5: expected NAME=value, got 'NAME_ALONE'""",
        """mounts."/".env_file[0]: 'a.env', line 6: SCRIPT_NAME: remove it: the mount's pattern says it""",
    ]


def test_an_env_file_must_exist_and_be_utf_8(read: Write, folder: Path) -> None:
    (folder / "latin.env").write_bytes(b"A=b\xfccher")

    assert faults(read, '[mounts."/"]\napp = "a"\nenv_file = ["none.env", "latin.env"]\n') == [
        f"""mounts."/".env_file[0]: expected a readable file, got 'none.env' (that is '{folder}/none.env')""",
        f"""mounts."/".env_file[1]: expected UTF-8, got byte 0xfc in 'latin.env' (that is '{folder}/latin.env')""",
    ]


# venv


def make_venv(path: Path, cfg: str, *, site_packages: bool = True) -> Path:
    path.mkdir()
    (path / "pyvenv.cfg").write_text(cfg)
    if site_packages:
        (path / SITE_PACKAGES).mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    "cfg",
    [
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}.99\nexecutable = /usr/bin/python\n",
        f"home = /usr/bin\nversion_info = {PYTHON}.0.final.0\n",
        f"version={PYTHON}\n",
    ],
    ids=["venv", "uv", "short"],
)
def test_a_venv_of_the_running_python_is_taken(read: Write, folder: Path, cfg: str) -> None:
    venv = make_venv(folder / ".venv", cfg)

    assert mount(read, 'app = "a"\nvenv = ".venv"').venv == str(venv)


def test_a_venv_made_by_the_venv_module_is_taken(read: Write, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "real"], check=True)

    assert mount(read, 'app = "a"\nvenv = "real"').venv == str(folder / "real")


def test_a_venv_of_another_python_is_a_fault_that_says_both_versions(read: Write, folder: Path) -> None:
    make_venv(folder / "old env", "version = 3.9.18\n")

    assert faults(read, '[mounts."/blog"]\napp = "a"\nvenv = "old env"\n') == [
        f'mounts."/blog".venv: made for Python 3.9, but gunicorn runs on Python {PYTHON}; '
        f"recreate it with python{PYTHON} -m venv --clear '{folder}/old env'"
    ]


def test_a_folder_that_is_no_whole_venv_is_a_fault(read: Write, folder: Path) -> None:
    make_venv(folder / "bare", f"version = {PYTHON}.1\n", site_packages=False)
    make_venv(folder / "mute", "home = /usr/bin\n")
    (folder / "plain").mkdir()
    text = "[mounts]\n" + "".join(f'"/{name}" = {{ app = "a", venv = "{name}" }}\n' for name in ("bare", "mute", "plain", "none"))

    no_venv = "expected a virtual environment (a folder with pyvenv.cfg), got"
    assert faults(read, text) == [
        f"""mounts."/bare".venv: expected the folder '{SITE_PACKAGES}' in '{folder}/bare', got none; """
        f"recreate it with python{PYTHON} -m venv --clear {folder}/bare",
        f"""mounts."/mute".venv: expected a Python version in its pyvenv.cfg, got none in 'mute' (that is '{folder}/mute')""",
        f"""mounts."/plain".venv: {no_venv} 'plain' (that is '{folder}/plain')""",
        f"""mounts."/none".venv: {no_venv} 'none' (that is '{folder}/none')""",
    ]


# What is said when the file is wrong.


def test_five_mistakes_give_five_lines_in_the_order_of_the_file(folder: Path) -> None:
    (folder / "isowsgi.toml").write_text(
        """
        [mounts]
        "/" = "shop.wsgi:application"
        "/blog" = { app = "blog:create_app(os.environ)", thread = 8 }
        blog = "blog"

        [mounts."/api"]
        app = "api"
        env = { DEBUG = 1 }

        [defaults]
        threads = 0
        """
    )

    with pytest.raises(ConfigError) as caught:
        load("isowsgi.toml")

    assert str(caught.value).splitlines() == [
        """isowsgi.toml: mounts."/blog".app: expected literal arguments, got 'os.environ' in 'blog:create_app(os.environ)'; """
        "compute it inside the factory",
        """isowsgi.toml: mounts."/blog".thread: unknown key; did you mean 'threads'?""",
        """isowsgi.toml: mounts.blog: expected '/blog' (a pattern begins with a slash or a host), got 'blog'""",
        """isowsgi.toml: mounts."/api".env.DEBUG: expected a string, got 1 (a whole number); write it in quotes: "1\"""",
        """isowsgi.toml: defaults.threads: must be 1 to 1024, got 0""",
    ]


MOUNT_KEYS = (
    "app, body_timeout, boot_timeout, copies, eager, env, env_file, exists, group, hosts, https_only, idle_timeout, instances, isolation, "
    "lazy, lazy_imports, limits, log, max_age, max_live, max_memory, max_requests, max_requests_jitter, min_rate, nice, on_boot, "
    "on_crash, on_drain, on_request_end, on_request_start, policy, post_fork, preload, python, pythonpath, queue, queue_timeout, replace, "
    "request_timeout, sandbox, send_timeout, server_timing, slow_request, static, threads, touch, umask, user, venv, "
    "warmup, watch, working_directory"
)
AN_APP = 'expected an app, as in app = "shop.wsgi:application"'
ONE_MOUNT = 'expected at least one mount, as in "/" = "shop.wsgi:application"'
MAIN = '[mounts]\n"/" = "a"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [f"mounts: missing; {ONE_MOUNT}"]),
        ("[mounts]\n", [f"mounts: {ONE_MOUNT}"]),
        ("mounts = []\n", ["mounts: expected a table, got a list"]),
        ('[mount]\n"/" = "a"\n', ["mount: unknown key; did you mean 'mounts'?"]),
        (MAIN + "[logging]\n", ["logging: unknown key; did you mean 'log'?"]),
        (
            '"/" = "a"\n' + MAIN,
            ['"/": unknown key; expected one of acceptor, control, defaults, include, log, mounts, status, tls, worker'],
        ),
        ("defaults = 1\n" + MAIN, ["defaults: expected a table, got 1 (a whole number)"]),
        (MAIN + '[defaults]\napp = "a"\n', ["defaults.app: unknown key; each mount names its own app"]),
        (MAIN + "[defaults]\nthread = 1\n", ["defaults.thread: unknown key; did you mean 'threads'?"]),
        (MAIN + '"/b" = "b"\n[defaults]\nthreads = "4"\n', ["defaults.threads: expected a whole number, got '4' (a string)"]),
        (MAIN + "[acceptor]\nhead_timeout = 0\n", ["acceptor.head_timeout: must be above 0 and at most 3600 seconds, got 0"]),
        (MAIN + "[acceptor]\nhead_timeout = 3600.5\n", ["acceptor.head_timeout: must be above 0 and at most 3600 seconds, got 3600.5"]),
        (MAIN + "[acceptor]\nhead_timeout = nan\n", ["acceptor.head_timeout: must be above 0 and at most 3600 seconds, got nan"]),
        (MAIN + '[acceptor]\nhead_timeout = "20"\n', ["acceptor.head_timeout: expected a number of seconds, got '20' (a string)"]),
        (MAIN + "[acceptor]\nhead_timeout = true\n", ["acceptor.head_timeout: expected a number of seconds, got true (a boolean)"]),
        (MAIN + "[acceptor]\ntimeout = 1\n", ["acceptor.timeout: unknown key; did you mean 'head_timeout'?"]),
        (MAIN + '[tls]\ncertificate = "a.pem"\n', ["tls: write [[tls]], in two pairs of brackets: there may be one for each certificate"]),
        (
            MAIN + '[[tls]]\nhosts = ["a.example", "*.b.example"]\ncertificate = "a.pem"\n'
            '[[tls]]\nhosts = "A.example."\ncertificate = "b.pem"\n',
            ['tls[1].hosts: "a.example" is in tls[0] too; keep one of them'],
        ),
        (
            MAIN + '[[tls]]\nhosts = ["127.0.0.1", "[::1]", "ä.example", "a.*.example", "a.example:443"]\nkey = "a.key"\n',
            [
                "tls[0].hosts[0]: no client asks for an address when it begins with TLS (RFC 6066): expected a host name, got '127.0.0.1'",
                "tls[0].hosts[1]: no client asks for an address when it begins with TLS (RFC 6066): expected a host name, got '[::1]'",
                "tls[0].hosts[2]: a host must be ASCII, got 'ä.example'; write the form that begins with 'xn--'",
                "tls[0].hosts[3]: '*' stands for the whole first label of a host, as in '*.example.com/', got 'a.*.example'",
                "tls[0].hosts[4]: expected a host without a port, got 'a.example:443'; ports belong to gunicorn's bind",
                "tls[0].certificate: missing; expected the path of a certificate in PEM, with its chain",
            ],
        ),
        (
            MAIN + '[[tls]]\nhosts = []\ncertificate = ""\n',
            ["tls[0].hosts: expected a host, or a list of hosts, got an empty list", "tls[0].certificate: expected a path, got ''"],
        ),
        (
            MAIN + '[[tls]]\ncertificate = "a.pem"\n',
            ['tls[0].hosts: missing; expected hosts, as in hosts = ["shop.example.com", "*.example.com"]'],
        ),
        (MAIN + "[status]\nallow = 1\n", ["status.allow: expected a string or a list of strings, got 1 (a whole number)"]),
        (
            MAIN + '[status]\nallow = ["10.1.0.0/8"]\n',
            [
                "status.allow[0]: its address has bits below the prefix; "
                "expected an address, a network such as '10.0.0.0/8', or 'unix', got '10.1.0.0/8'"
            ],
        ),
        (MAIN + '[status]\nhosts = ""\n', ["status.hosts: expected a host name, got ''"]),
        ('[mounts]\n"/" = 4\n', ['mounts."/": expected an app (a string) or a table, got 4 (a whole number)']),
        ('[mounts]\n"/" = ["a"]\n', ['mounts."/": expected an app (a string) or a table, got a list']),
        ('[mounts."/"]\n', ['mounts."/".app: missing; expected an app, as in app = "shop.wsgi:application"']),
        ('[mounts."/"]\nap = "a"\n', ["""mounts."/".ap: unknown key; did you mean 'app'?"""]),
        ('[mounts."/"]\napp = "a"\n"x y" = 1\n', [f'mounts."/"."x y": unknown key; expected one of {MOUNT_KEYS}']),
    ],
)
def test_a_wrong_file_is_told_so_line_by_line(read: Write, text: str, expected: list[str]) -> None:
    assert faults(read, text) == expected


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ('[mounts]\n/blog = "a"\n', 'quote the pattern: "/blog" = ...'),
        ('[mounts]\n  /blog={ app = "a" }\n', 'quote the pattern: "/blog" = ...'),
        ('[mounts]\nshop.example.com/ = "a"\n', 'quote the pattern: "shop.example.com/" = ...'),
        ('[mounts]\n*.example.com/ = "a"\n', 'quote the pattern: "*.example.com/" = ...'),
        ('[mounts./blog]\napp = "a"\n', 'quote the pattern: [mounts."/blog"]'),
        ('[mounts]\n"/" = a/b\n', "invalid value"),
    ],
)
def test_a_pattern_without_its_quotes_is_told_so(read: Write, text: str, ending: str) -> None:
    (fault,) = faults(read, text)

    assert fault.endswith(ending)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("timeout = 3", "timeout: unknown key; here it is 'request_timeout' (seconds without progress)"),
        ("processes = 3", "processes: unknown key; here it is 'instances'"),
        ('wsgi-file = "a.py"', "wsgi-file: unknown key; here it is 'app', as in"),
        ('module = "a"', "module: unknown key; here it is 'app', as in"),
        ('virtualenv = "v"', "virtualenv: unknown key; here it is 'venv'"),
        ('chdir = "/"', "chdir: unknown key; here it is 'working_directory', for a process of its own"),
        ("uid = 3", "uid: unknown key; here it is 'user', as in user = "),
        ('static-map = "/"', """static-map: unknown key; here it is 'static', a table"""),
        ("boot_timeou = 3", "boot_timeou: unknown key; did you mean 'boot_timeout'?"),
    ],
)
def test_a_key_of_another_server_is_told_what_it_is_here(read: Write, key: str, expected: str) -> None:
    found = faults(read, f'[mounts."/"]\n{key}\n')

    assert found[0].startswith(f'mounts."/".{expected}')
    assert [fault for fault in found if "missing" in fault] == ([] if "'app'" in expected else [f'mounts."/".app: missing; {AN_APP}'])


def test_every_key_that_a_foreign_one_is_here_is_one() -> None:
    valid = {field.name for table in (MountTable, RedirectTable, WorkerTable) for field in attrs.fields(table)}
    named = {name for text in foreign._KEYS.values() for name in re.findall(r"'([a-z_]+)(?: = [a-z]+)?'", text)}

    assert named <= valid
    assert not {*foreign._KEYS} & {field.name for field in attrs.fields(MountTable)}


NAME = "expected a name that is not empty and holds no '=' and no NUL"
WARMUP = "expected a path below the mount as a browser sends it, such as '/health', got"
ISOLATION = "expected one of 'auto', 'own-gil', 'shared-gil', 'process', 'main', got"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("threads = 0", "threads: must be 1 to 1024, got 0"),
        ("threads = 1025", "threads: must be 1 to 1024, got 1025"),
        ("threads = '4'", "threads: expected a whole number, got '4' (a string)"),
        ("threads = true", "threads: expected a whole number, got true (a boolean)"),
        ("threads = 4.0", "threads: expected a whole number, got 4.0 (a float)"),
        ("threads = 2026-01-31", "threads: expected a whole number, got 2026-01-31 (a date or time)"),
        (f"threads = 0x{'f' * 4000}", f"threads: must be 1 to 1024, got 0x{'f' * 18}..."),
        ("instances = 65", "instances: must be 1 to 64, got 65"),
        ("isolation = 'thread'", f"isolation: {ISOLATION} 'thread'"),
        ("isolation = true", "isolation: expected a string, got true (a boolean)"),
        ("pythonpath = 4", "pythonpath: expected a string or a list of strings, got 4 (a whole number)"),
        ("pythonpath = ['.', 4]", "pythonpath[1]: expected a string, got 4 (a whole number)"),
        ("pythonpath = ['.', '']", "pythonpath[1]: expected a path, got ''"),
        ("pythonpath = '/no/such'", "pythonpath: expected an existing folder, got '/no/such'"),
        ("env_file = { A = '1' }", "env_file: expected a string or a list of strings, got a table"),
        ("venv = ''", "venv: expected a path, got ''"),
        ("venv = ['a']", "venv: expected a string, got a list"),
        ("env = ['A']", "env: expected a table, got a list"),
        ("env = { A = true }", 'env.A: expected a string, got true (a boolean); write it in quotes: "true"'),
        ("env = { A = 1.5 }", 'env.A: expected a string, got 1.5 (a float); write it in quotes: "1.5"'),
        ("env = { A = ['x'] }", "env.A: expected a string, got a list"),
        ('env = { A = "x\\u0000" }', "env.A: expected a string without NUL"),
        ("env = { '' = 'x' }", f'env."": {NAME}'),
        ("env = { 'A=B' = 'x' }", f'env."A=B": {NAME}'),
        ('env = { "A\\u0000" = "x" }', f'env."A\\u0000": {NAME}'),
        ("env = { SCRIPT_NAME = '/' }", "env.SCRIPT_NAME: remove it: the mount's pattern says it"),
        ("lazy = 1", "lazy: expected a boolean, got 1 (a whole number)"),
        ("idle_timeout = -1", "idle_timeout: must be 0 (no limit) to 604800 seconds, got -1"),
        ("request_timeout = '1 min'", "request_timeout: expected a number of seconds, got '1 min' (a string)"),
        ("body_timeout = true", "body_timeout: expected a number of seconds, got true (a boolean)"),
        ("send_timeout = 604801", "send_timeout: must be 0 (no limit) to 604800 seconds, got 604801"),
        ("min_rate = 0.5", "min_rate: expected a whole number, got 0.5 (a float)"),
        ("boot_timeout = nan", "boot_timeout: must be 0 (no limit) to 604800 seconds, got nan"),
        ("queue = -1", "queue: must be 0 to 1000000000, got -1"),
        ("max_memory = 300", "max_memory: expected a size with its unit, such as '300M', got 300 (a whole number)"),
        (
            'max_memory = "0.5G"',
            "max_memory: expected a whole number with K, M or G (of 1024), such as '300M', and 1024G at most; got '0.5G'",
        ),
        ("umask = 27", "umask: expected a string of octal digits, such as '027', got 27 (a whole number)"),
        ("umask = '028'", "umask: expected a string of three octal digits, such as '027', got '028'"),
        ("umask = '1777'", "umask: expected a string of three octal digits, such as '027', got '1777'"),
        ("nice = 20", "nice: must be 0 to 19, got 20"),
        ("nice = -1", "nice: must be 0 to 19, got -1; for a higher priority set Nice= in gunicorn's unit"),
        ("working_directory = ''", "working_directory: expected a path, got ''"),
        ("sandbox = 1", "sandbox: expected true, false or a table, got 1 (a whole number)"),
        ("sandbox = { write = [1] }", "sandbox.write[0]: expected a string, got 1 (a whole number)"),
        (
            "sandbox = { connect = 'unix:run' }",
            "sandbox.connect: expected the absolute path of a socket, or of its folder, after 'unix:', got 'unix:run'",
        ),
        ("sandbox = { listen = '*:0' }", "sandbox.listen: expected a host and a port of 1 to 65535, such as '127.0.0.1:5432', got '*:0'"),
        ("limits = '1G'", "limits: expected a table, got '1G' (a string)"),
        ("limits = { memory = '63M' }", "limits.memory: must be '64M' or more, or 0 for no limit: less does not load an app"),
        ("limits = { files = 63 }", "limits.files: must be 64 or more, or 0 for no limit: less does not load an app"),
        ("limits = { processes = 15 }", "limits.processes: must be 16 or more, or 0 for no limit: less does not load an app"),
        (
            "threads = 20\nlimits = { processes = 21 }",
            "limits: processes must be 22 or more, as each thread counts and threads = 20, got 21",
        ),
        ("limits = { cpu = 0.01 }", "limits.cpu: must be 0.05 to 1024 (cores), or 0 for no limit, got 0.01"),
        ("limits = { cpu = nan }", "limits.cpu: must be 0.05 to 1024 (cores), or 0 for no limit, got nan"),
        ("limits = { cpu = '50%' }", "limits.cpu: expected a share of one core, such as 0.5, got '50%' (a string)"),
        ("limits = { file_size = 1 }", "limits.file_size: expected a size with its unit, such as '300M', got 1 (a whole number)"),
        ("limits = { ram = 1 }", "limits.ram: unknown key; expected one of cpu, file_size, files, memory, processes"),
        ("max_requests = 1.5", "max_requests: expected a whole number, got 1.5 (a float)"),
        ("warmup = 'health'", f"warmup: {WARMUP} 'health'"),
        ("warmup = '/a b'", f"warmup: {WARMUP} '/a b'"),
        ("touch = ''", "touch: expected a path, got ''"),
        ("on_crash = 'ignore'", "on_crash: expected one of 'quarantine', 'process', 'serve', got 'ignore'"),
        ("python_path = '.'", "python_path: unknown key; did you mean 'pythonpath'?"),
        ("Threads = 1", "Threads: unknown key; did you mean 'threads'?"),
    ],
)
def test_a_wrong_setting_is_told_with_its_place_and_what_was_expected(read: Write, line: str, expected: str) -> None:
    assert faults(read, f'[mounts."/blog"]\napp = "blog"\n{line}\n') == [f'mounts."/blog".{expected}']
    assert faults(read, f"{MAIN}[defaults]\n{line}\n") == [f"defaults.{expected}"]


def test_the_settings_of_a_mounts_life_are_read(read: Write) -> None:
    text = (
        "[defaults]\nrequest_timeout = 5\nqueue = 7\n[worker]\nmax_stuck = 1\nmax_rss = 900\n"
        "[mounts.'/a']\napp = 'a'\nlazy = true\nidle_timeout = 600\ntouch = 'reload-a'\nwarmup = '/health?deep=1'\nqueue = 0\n"
        "body_timeout = 1.5\nsend_timeout = 0\n"
    )

    config = read(text)

    (mount,) = config.mounts
    assert (mount.lazy, mount.idle_timeout, mount.request_timeout, mount.queue) == (True, 600.0, 5.0, 0)
    assert (mount.body_timeout, mount.send_timeout, mount.min_rate) == (1.5, 0.0, 500)
    assert mount.warmup == "/health?deep=1"
    assert mount.touch == os.path.join(os.path.dirname(config.path), "reload-a")
    assert (config.limits.max_stuck, config.limits.max_rss, config.limits.crashes) == (1, 900, 3)


DOTS = "expected no '//', '.' or '..': no request path is normalised, so they would be matched literally, got"
BLANK = "a pattern may not hold spaces and control characters, got"
HOST = "expected a host of letters, digits, '-', '_' and '.', got"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", 'expected a pattern, as in "/blog" or "api.example.com/", got \'\''),
        ("blog", "expected '/blog' (a pattern begins with a slash or a host), got 'blog'"),
        ("bücher", "expected '/bücher' (a pattern begins with a slash or a host), got 'bücher'"),
        ("api.example.com", 'write "api.example.com/" for the whole host'),
        ("localhost", 'write "localhost/" for the whole host'),
        ("[::1]", 'write "[::1]/" for the whole host'),
        ("/a%20b", "write it decoded: requests are matched after percent-decoding, got '%20'"),
        ("/a//b", f"{DOTS} '//'"),
        ("/a//", f"{DOTS} '//'"),
        ("/a/./b", f"{DOTS} '/.'"),
        ("/a/..", f"{DOTS} '/..'"),
        ("/../", f"{DOTS} '/..'"),
        ("/a?b=1", "a pattern is a path: no query and no fragment, got '?'"),
        ("/a#b", "a pattern is a path: no query and no fragment, got '#'"),
        ("/a b", f"{BLANK} '/a b'"),
        ("GET /a", f"{BLANK} 'GET /a'"),
        ("/a\x7f", f"{BLANK} '/a\\x7f'"),
        ("/a\u2028", f"{BLANK} '/a\\u2028'"),
        ("https://example.com/a", "expected a pattern without a scheme: 'example.com/a'"),
        ("example.com:8000/a", "expected a host without a port, got 'example.com:8000'; ports belong to gunicorn's bind"),
        ("localhost:8000", "expected a host without a port, got 'localhost:8000'; ports belong to gunicorn's bind"),
        ("[::1]:80/", "expected a host without a port, got '[::1]:80'; ports belong to gunicorn's bind"),
        ("[::1::2]/", "expected an IPv6 address in brackets, got '[::1::2]'"),
        ("bücher.example/", "a host must be ASCII, got 'bücher.example'; write the form that begins with 'xn--'"),
        ("*.a..example/", f"{HOST} 'a..example'"),
        ("a..example/", f"{HOST} 'a..example'"),
        ("me@example.com/", f"{HOST} 'me@example.com'"),
        (f"{'a' * 64}.example/", f"{HOST} '{'a' * 64}.example'"),
    ],
)
def test_a_wrong_pattern_is_told_what_to_write(read: Write, pattern: str, expected: str) -> None:
    key = pattern if pattern in ("blog", "localhost") else json.dumps(pattern, ensure_ascii=not pattern.isprintable())

    assert faults(read, f'[mounts]\n{json.dumps(pattern)} = "a"\n') == [f"mounts.{key}: {expected}"]


def test_two_spellings_of_one_pattern_are_a_fault_that_names_both(read: Write) -> None:
    assert faults(read, '[mounts]\n"/blog" = "a"\n"A.example/" = "a"\n"/blog/" = "b"\n"a.Example./" = "b"\n') == [
        'mounts."/blog/": the same pattern as "/blog"; keep one of them',
        'mounts."a.Example./": the same pattern as "A.example/"; keep one of them',
    ]


def test_a_wrong_pattern_does_not_hide_what_is_wrong_below_it(read: Write) -> None:
    """cattrs leaves a key unchecked once its value has failed."""
    assert faults(read, '[mounts]\n"/a" = "1"\n"/a/" = { app = "a", env = { "" = 1 } }\n') == [
        """mounts."/a": expected a dotted module name, got '1'; a path to a script holds a slash""",
        'mounts."/a/": the same pattern as "/a"; keep one of them',
        f'mounts."/a/".env."": {NAME}',
        'mounts."/a/".env."": expected a string, got 1 (a whole number); write it in quotes: "1"',
    ]


CALL = "expected a name or a call with literal arguments after ':', as in create_app(debug=True), got"
MODULE = "expected a dotted module name, got"


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        ("", "expected an app, as in 'shop.wsgi:application' or 'shop/app.wsgi', got ''"),
        (":app", "expected an app, as in 'shop.wsgi:application' or 'shop/app.wsgi', got ':app'"),
        ("my-shop:app", f"{MODULE} 'my-shop'; a path to a script holds a slash"),
        (".shop:app", f"{MODULE} '.shop'; a path to a script holds a slash"),
        ("shop.class:app", f"{MODULE} 'shop.class'; a path to a script holds a slash"),
        ("create_app()", f"{MODULE} 'create_app()'; a path to a script holds a slash"),
        ("shop:", f"{CALL} 'shop:'"),
        ("shop:app.wsgi", f"{CALL} 'shop:app.wsgi'"),
        ("shop:make()()", f"{CALL} 'shop:make()()'"),
        ("shop:make(", f"{CALL} 'shop:make('"),
        ("shop:make(**{})", f"{CALL} 'shop:make(**{{}})'"),
        ("shop:True", f"{CALL} 'shop:True'"),
        ("shop:a:b", f"{CALL} 'shop:a:b'"),
        ("s:f(x=os.sep)", "expected literal arguments, got 'os.sep' in 's:f(x=os.sep)'; compute it inside the factory"),
        ("s:f(1, g())", "expected literal arguments, got 'g()' in 's:f(1, g())'; compute it inside the factory"),
        ("s:f({[]: 1})", "expected literal arguments, got '{[]: 1}' in 's:f({[]: 1})'; compute it inside the factory"),
        ("s:f(*[1])", "expected literal arguments, got '*[1]' in 's:f(*[1])'; compute it inside the factory"),
        ("/no/such.wsgi", "expected an existing script file, got '/no/such.wsgi'"),
        ("/no/such.wsgi:app", "expected an existing script file, got '/no/such.wsgi'"),
    ],
)
def test_a_wrong_app_is_told_what_to_write(read: Write, app: str, expected: str) -> None:
    assert faults(read, f'[mounts]\n"/" = {json.dumps(app)}\n') == [f'mounts."/": {expected}']
    assert faults(read, f'[mounts]\n"/" = {{ app = {json.dumps(app)} }}\n') == [f'mounts."/".app: {expected}']


def test_a_missing_script_that_may_be_meant_as_a_module_is_told_how_to_write_that(read: Write, folder: Path) -> None:
    assert faults(read, '[mounts]\n"/" = "shop.wsgi"\n') == [
        f"""mounts."/": expected an existing script file, got 'shop.wsgi' (that is '{folder}/shop.wsgi'); """
        "for the module write 'shop.wsgi:application'"
    ]


def test_own_gil_is_refused_where_it_is_asked_for_with_the_callers_reason(folder: Path) -> None:
    (folder / "x.toml").write_text(
        '[mounts]\n"/a" = { app = "a", isolation = "own-gil" }\n"/b" = { app = "b", isolation = "own-gil" }\n"/c" = "c"\n'
    )

    assert [mount.isolation for mount in load("x.toml").mounts] == ["own-gil", "own-gil", "auto"]
    with pytest.raises(ConfigError) as caught:
        load("x.toml", own_gil_error="needs Python 3.13, got 3.12")
    assert caught.value.faults == tuple(f'x.toml: mounts."/{name}".isolation: needs Python 3.13, got 3.12' for name in "ab")


# Files that are no TOML.


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (b'[mounts]\n"/" = = 1\n', "x.toml: line 2, column 7: not valid TOML: invalid value"),
        (b"[mounts\n", "x.toml: line 1, column 8: not valid TOML: expected ']'"),
        (b"a = ", "x.toml: end of document: not valid TOML: invalid value"),
        (b"a = '\xff'", "x.toml: not valid TOML: expected UTF-8, got byte 0xff at offset 5"),
        (b"a = " + b"[" * 50_000, "x.toml: "),
        (b"a = " + b"9" * 5_000, "x.toml: not valid TOML: "),
        (b".".join([b"a"] * 3_000) + b" = 1", "x.toml: "),
    ],
    ids=["value", "table", "end", "utf-8", "nested", "digits", "dotted"],
)
def test_a_file_that_is_no_toml_is_one_fault_with_its_line_and_column(folder: Path, content: bytes, begins: str) -> None:
    (folder / "x.toml").write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        load("x.toml")
    assert caught.value.faults[0].startswith(begins)
    assert all(len(fault.splitlines()) == 1 for fault in caught.value.faults)


def test_a_file_that_cannot_be_read_is_one_fault(folder: Path) -> None:
    """Whatever there is in its place: a FIFO held gunicorn's master for ever, also at a SIGHUP."""
    (folder / "folder.toml").mkdir()
    os.mkfifo(folder / "fifo.toml")
    (folder / "huge.toml").write_bytes(b"#" * (regularfiles.MAX_CONFIG_BYTES + 1))
    (folder / "zero.toml").symlink_to("/dev/zero")
    (folder / "loop.toml").symlink_to("loop.toml")
    said: list[str] = []
    for path in ("conf/none.toml", "folder.toml", "fifo.toml", "huge.toml", "zero.toml", "loop.toml", "a\0b"):
        with pytest.raises(ConfigError) as caught:
            load(path)
        said += caught.value.faults

    assert said == [
        f"conf/none.toml: no such file, looked for '{folder}/conf/none.toml'",
        "folder.toml: expected a config file, got a folder",
        "fifo.toml: expected a config file, got a FIFO",
        "huge.toml: expected a config file, got one of more than 4,194,304 bytes",
        "zero.toml: expected a config file, got a device",
        "loop.toml: cannot read it: too many levels of symbolic links",
        "a\0b: cannot read it: embedded null byte",
    ]


def test_a_byte_order_mark_is_no_part_of_a_file(folder: Path) -> None:
    """Editors on Windows put one there; the first key was unknown then, and so was the first variable of an env_file."""
    (folder / "a.env").write_bytes(b"\xef\xbb\xbfA=1\n")
    (folder / "bom.toml").write_bytes(b'\xef\xbb\xbf[mounts]\n"/" = { app = "a", env_file = "a.env" }\n')

    assert load("bom.toml").mounts[0].env == {"A": "1"}


def test_a_file_is_found_from_a_working_directory_that_was_deleted_if_its_path_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "isowsgi.toml").write_text('[mounts]\n"/" = "a"\n')
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()

    assert load(folder / "isowsgi.toml").path == str(folder / "isowsgi.toml")
    with pytest.raises(ConfigError, match="the working directory was deleted; give the file's absolute path"):
        load("isowsgi.toml")


def test_a_user_without_a_home_is_told_so(read: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers, with a uid that has no entry in passwd: "~" stayed as it was, a folder of that name."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)

    [fault] = faults(read, '[mounts]\n"/" = { app = "a", log = "~/a.log" }\n')
    assert fault.startswith(f'mounts."/".log: write the absolute path: uid {os.getuid()} has no home folder')


# Any file: a small writer of TOML, so that the structures are not only those tests think of.


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, (str, bool)):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return str(value)


SETTINGS = ["app", "pythonpath", "venv", "env", "env_file", "threads", "isolation", "instances"]
PATTERNS = ["/", "/blog", "/blog/", "blog", "a.example", "A.example/", "[::1]/", "/a/..", "/%41", "x:1/"]
WORDS = ["a:b", "a:f(1)", "a:f(x)", "a/b.wsgi", "b.wsgi", "auto", "own-gil", ".", "~", "SCRIPT_NAME", "\0", "\u2028"]
# No astral characters, which JSON writes as a pair of surrogates and TOML refuses.
text = st.sampled_from(WORDS) | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20)
atoms = text | st.integers() | st.floats() | st.booleans() | st.dates(min_value=datetime.date(1000, 1, 1))
anything = st.recursive(atoms, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8)


def tables(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names) | text, anything, max_size=5)


files = tables(["mounts"]) | st.fixed_dictionaries(
    {"mounts": st.dictionaries(st.sampled_from(PATTERNS) | text, anything | tables(SETTINGS), max_size=4)},
    optional={"defaults": tables(SETTINGS) | anything, "acceptor": tables(["head_timeout"]) | anything},
)


def faults_of(path: Path, content: bytes) -> tuple[str, ...]:
    path.write_bytes(content)
    try:
        config = load(path)
    except ConfigError as error:
        return error.faults or ("an error without a fault",)
    assert config.mounts
    return ()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("any")
    return folder / "isowsgi.toml"


@examples(300)
@given(data=files)
@example(data={"mounts": {"/": {"app": "a", "env": {"\0": "\0"}, "pythonpath": ["\0"], "venv": "\0", "env_file": "\0"}}})
@example(data={"mounts": {"/\0": "\0/", "": ""}, "": {}})
def test_any_structure_is_a_config_or_faults_of_one_line_each(path: Path, data: dict[str, Any]) -> None:
    content = "".join(f"{json.dumps(key)} = {as_toml(value)}\n" for key, value in data.items())

    for fault in faults_of(path, content.encode()):
        assert fault.startswith(f"{path}: ")
        assert "not valid TOML" not in fault  # it is valid: the writer above is the one that would be wrong
        assert len(fault.splitlines()) == 1


@examples(100)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_config_or_faults_of_one_line_each(path: Path, content: bytes) -> None:
    for fault in faults_of(path, content):
        assert fault.startswith(f"{path}: ")
        assert len(fault.splitlines()) == 1


def test_reading_a_config_loads_no_c_extension_from_outside_the_standard_library() -> None:
    """Many may live in only one interpreter of a process: one that we import is one taken from an app."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"  # what measures coverage is there at the start
        "import isowsgi.configuration\n"
        "files = [getattr(sys.modules[name], '__file__', None) or '' for name in set(sys.modules) - before]\n"
        "print([file for file in files if file.endswith('.so') and 'site-packages' in file])"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environ)

    assert run.stdout == "[]\n"


def test_who_may_see_the_status_page_is_told_by_network_and_host(read: Write) -> None:
    status = read(MAIN + '[status]\nallow = ["10.0.0.0/8", "::1", "unix", "192.0.2.7"]\nhosts = "Web1.Example."\n').status

    assert status == Status(allow=("10.0.0.0/8", "::1/128", "unix", "192.0.2.7/32"), hosts=("web1.example",))


# What several keys mean together.


def fake_python(folder: Path, version: str) -> str:
    """An executable that answers as a Python of this version would."""
    path = folder / f"python{version}"
    major, minor = version.split(".")
    path.write_text(f"#!/bin/sh\necho '[\"cpython\", {major}, {minor}, 0]'\n")
    path.chmod(0o755)
    return str(path)


def test_another_python_takes_a_venv_of_its_own_version(read: Write, folder: Path) -> None:
    make_venv(folder / "env", "version = 3.42.0\n")
    (folder / "env/lib/python3.42/site-packages").mkdir(parents=True)
    python = fake_python(folder, "3.42")

    found = mount(read, f'app = "a"\npython = "{python}"\nvenv = "env"')

    assert (found.python, found.venv) == (python, str(folder / "env"))


def test_a_python_is_a_path_or_a_command(read: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_python(folder, "3.42")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    assert mount(read, 'app = "a"\npython = "python3.42"').python == python
    assert mount(read, 'app = "a"\npython = "./python3.42"').python == python


def test_a_python_that_will_not_do_is_a_fault_that_says_why(read: Write, folder: Path) -> None:
    (folder / "text").write_text("no program")
    old = fake_python(folder, "3.9")
    text = "[mounts]\n" + "".join(f'"/{n}" = {{ app = "a", python = "{p}" }}\n' for n, p in enumerate(("./none", "./text", old)))

    none, no_python, too_old = faults(read, text)
    assert none == f"mounts.\"/0\".python: expected a Python's executable, got '{folder}/none': no such file or directory"
    assert no_python == f"mounts.\"/1\".python: expected a Python's executable, got '{folder}/text', which does not answer as one"
    assert "expected CPython 3.10 or newer, which gunicorn" in too_old
    assert f"got CPython 3.9.0 ('{old}')" in too_old


@pytest.mark.parametrize(
    "code", ["while :; do echo flood; done", "echo '[\"cpython\", 3, 42, 0]'; exit 1", "echo '[\"cpython\", {}]'", "exit"]
)
def test_what_is_no_python_is_told_at_once(read: Write, folder: Path, code: str) -> None:
    """One that writes without an end took 24 s, and memory for all of it."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    began = time.monotonic()

    [fault] = faults(read, f'[mounts]\n"/" = {{ app = "a", python = "{path}" }}\n')

    assert fault.endswith("which does not answer as one")
    assert time.monotonic() - began < pythons._ANSWER_S


def test_a_program_that_does_not_end_is_given_up_with_all_that_it_started(
    read: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pythons, "_ANSWER_S", 0.2)
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {folder}/started\nwait\n")
    path.chmod(0o755)

    [fault] = faults(read, f'[mounts]\n"/" = {{ app = "a", python = "{path}" }}\n')

    assert fault.endswith("which does not answer as one")
    if (folder / "started").exists():  # else it was given up before
        eventually(lambda: not is_running(int((folder / "started").read_text())), "the end of what it started")


def is_running(pid: int) -> bool:
    """Whether a process is there that is no zombie: whoever is init here may not wait for its own."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_another_python_needs_a_process(read: Write, folder: Path) -> None:
    python = fake_python(folder, "3.42")

    assert faults(read, f'[mounts."/"]\napp = "a"\npython = "{python}"\nisolation = "main"\n') == [
        'mounts."/".python: another Python runs in its own process: expected isolation = "process" (or "auto"), got \'main\''
    ]


def test_a_script_is_no_python_for_a_sandbox(read: Write, folder: Path) -> None:
    """pyenv's shims answer as a Python, and were refused all that they start: the process ended with status 1."""
    python = fake_python(folder, "3.42")
    table = f'app = "a"\npython = "{python}"\n'

    assert mount(read, table + "sandbox = false").python == python
    assert faults(read, f'[mounts."/"]\n{table}sandbox = true\n') == [
        f"mounts.\"/\".python: expected a Python's executable, got the script '{python}': in a sandbox it cannot reach the Python that it "
        "starts; write what its sys.executable says"
    ]


def test_a_venv_of_another_version_names_its_own_python_if_that_could_run_the_app(read: Write, folder: Path) -> None:
    make_venv(folder / "env", "version = 3.42.0\n")
    (folder / "env/bin").mkdir()
    (folder / "env/bin/python").symlink_to(fake_python(folder, "3.42"))

    [fault] = faults(read, '[mounts."/"]\napp = "a"\nvenv = "env"\n')

    assert fault.endswith(f', or set python = "{folder}/env/bin/python" to run the app on that Python, in its own process')


def test_faults_of_keys_together_are_told_with_the_others(read: Write, folder: Path) -> None:
    make_venv(folder / "env", f"version = {PYTHON}.1\n")
    text = """
        [mounts]
        "/a" = { app = "a", isolation = "main", venv = "env", instances = 2 }
        "/b" = { app = "b", threads = 0 }
    """

    assert faults(read, text) == [
        'mounts."/a".venv: an app in the main interpreter has the packages of gunicorn\'s own environment; use isolation = "process"',
        'mounts."/a".instances: there is one main interpreter, got 2',
        'mounts."/b".threads: must be 1 to 1024, got 0',
    ]


def test_what_the_defaults_bring_about_is_a_fault_of_theirs(read: Write, folder: Path) -> None:
    make_venv(folder / "env", f"version = {PYTHON}.1\n")

    [fault] = faults(read, '[defaults]\nvenv = "env"\n[mounts."/a"]\napp = "a"\nisolation = "main"\n')

    assert fault.startswith("defaults.venv: an app in the main interpreter")


# Groups.


def test_members_of_a_group_share_what_one_of_them_says(read: Write, folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).mkdir()
    a, b, c = read(
        """
        [defaults]
        threads = 2
        env = { A = "default", B = "default" }
        [mounts]
        "/a" = { app = "a", group = "g", threads = 8, pythonpath = "x", env = { A = "1" }, warmup = "/a" }
        "/b" = { app = "b", group = "g", pythonpath = "y", env = { C = "3" } }
        "/c" = "c"
        """
    ).mounts

    assert (a.threads, b.threads, c.threads) == (8, 8, 2)
    assert a.pythonpath == b.pythonpath == (str(folder / "x"), str(folder / "y"))
    assert a.env == b.env == {"A": "1", "B": "default", "C": "3"}
    assert (a.warmup, b.warmup, c.group) == ("/a", None, None)


def test_contradictions_within_a_group_are_faults(read: Write) -> None:
    text = """
        [mounts]
        "/a" = { app = "a", group = "g", threads = 8, env = { A = "1" } }
        "/b" = { app = "b", group = "g", threads = 4, env = { A = "2" } }
        "/c" = { app = "c", group = "h", threads = 4 }
    """

    assert faults(read, text) == [
        'mounts."/b".threads: contradicts mounts."/a", which says 8: both share the group \'g\'',
        "mounts.\"/b\".env.A: contradicts mounts.\"/a\", which says '1': both share the group 'g'",
    ]


def test_all_mounts_of_the_main_interpreter_are_one_group(read: Write) -> None:
    a, b = read('[mounts]\n"/a" = { app = "a", isolation = "main", threads = 3 }\n"/b" = { app = "b", isolation = "main" }\n').mounts

    assert (a.group, b.group, b.threads) == ("main", "main", 3)
    assert faults(read, '[mounts."/"]\napp = "a"\ngroup = "main"\n') == [
        'mounts."/".group: \'main\' is the group of the mounts with isolation = "main"; choose another name'
    ]
    assert faults(read, '[mounts."/"]\napp = "a"\ngroup = "g"\nisolation = "main"\n') == [
        'mounts."/": mounts of the main interpreter share it anyway; remove their group'
    ]


# Policies.


def test_a_policy_is_laid_over_the_defaults_word_by_word_and_what_is_allowed_is_left_out(read: Write) -> None:
    a, b, c = read(
        """
        [defaults]
        policy = { chdir = "deny", umask = "warn" }
        [mounts]
        "/a" = { app = "a", policy = { chdir = "allow", exit = "deny" } }
        "/b" = { app = "b", policy = "allow" }
        "/c" = { app = "c", policy = "deny" }
        """
    ).mounts

    assert a.policy == {"umask": "warn", "exit": "deny"}
    assert b.policy == {}
    assert c.policy == dict.fromkeys(policies.WORDS, "deny")
    assert mount(read, 'app = "a"').policy == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", "policy: expected one of 'allow', 'warn', 'deny' or a table of them, got 1 (a whole number)"),
        ('"forbid"', "policy: expected one of 'allow', 'warn', 'deny', got 'forbid'"),
        ("{ chdir = true }", "policy.chdir: expected a string, got true (a boolean)"),
        ('{ chdir = "log" }', "policy.chdir: expected one of 'allow', 'warn', 'deny', got 'log'"),
        ('{ locale = "warn" }', "policy.locale: unknown word; did you mean 'setlocale'?"),
        ('{ setuid = "deny" }', "policy.setuid: unknown word; did you mean 'ids'?"),
        ('{ prlimit = "deny" }', "policy.prlimit: unknown word; did you mean 'setrlimit'?"),
        ('{ Fork = "deny" }', "policy.Fork: unknown word; did you mean 'fork'?"),
        ('{ qqqqq = "deny" }', f"policy.qqqqq: unknown word; expected one of {', '.join(policies.WORDS)}"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_a_fault(read: Write, value: str, expected: str) -> None:
    assert faults(read, f'[mounts."/"]\napp = "a"\npolicy = {value}\n') == [f'mounts."/".{expected}']
    assert faults(read, f'[defaults]\npolicy = {value}\n[mounts]\n"/" = "a"\n') == [f"defaults.{expected}"]


def test_what_only_a_process_can_have_is_a_fault_elsewhere_and_decides_auto(read: Write) -> None:
    rest = '[defaults]\nlimits = { files = 100, memory = "1G" }\numask = "7"\n'.replace('"7"', '"0077"')
    auto = mount(read, 'app = "a"\nlimits = { files = 0, memory = "512M", cpu = 0.5, processes = 64 }\nnice = 1', rest=rest)
    limits = {"memory": 2.0**29, "cpu": 0.5, "processes": 64.0}
    assert (auto.limits, auto.umask, auto.nice, auto.needs_process) == (limits, "077", 1, True)
    assert not mount(read, 'app = "a"\nlimits = { files = 0 }').needs_process

    wanted = 'only a process has its own: expected isolation = "process" (or "auto"), got'
    for isolation in ("main", "shared-gil"):
        own = f'[mounts."/"]\napp = "a"\nisolation = "{isolation}"\nworking_directory = "/"\n'
        assert faults(read, own) == [f"mounts.\"/\".working_directory: {wanted} '{isolation}'"]
    default = '[defaults]\nlimits = { files = 100 }\n[mounts]\n"/" = { app = "a", isolation = "main" }\n"/b" = "b"\n'
    assert faults(read, default) == [f"defaults.limits: {wanted} 'main'"]


def test_a_sandbox_is_replaced_as_a_whole_and_taken_back_by_false(read: Write, tmp_path: Path) -> None:
    rest = "[defaults]\nsandbox = { write = 'media', connect = [] }\n"
    assert mount(read, 'app = "a"', rest=rest).sandbox == {"write": (str(tmp_path / "media"),), "connect": ()}
    assert mount(read, 'app = "a"\nsandbox = true', rest=rest).sandbox == {}
    assert mount(read, 'app = "a"\nsandbox = false\nisolation = "main"', rest=rest).sandbox is None
    own = '[mounts."/"]\napp = "a"\nisolation = "own-gil"\nsandbox = true\n'
    assert faults(read, own.replace("own-gil", "shared-gil"))[0].startswith('mounts."/".sandbox: only a process has its own')


def test_members_of_a_group_have_one_policy(read: Write) -> None:
    a, b = read('[mounts]\n"/a" = { app = "a", group = "g", policy = { chdir = "deny" } }\n"/b" = { app = "b", group = "g" }\n').mounts
    assert a.policy == b.policy == {"chdir": "deny"}

    text = """
        [mounts]
        "/a" = { app = "a", group = "g", policy = { chdir = "deny", umask = "warn" } }
        "/b" = { app = "b", group = "g", policy = { chdir = "warn", umask = "warn", exit = "deny" } }
    """
    assert faults(read, text) == [
        "mounts.\"/b\".policy.chdir: contradicts mounts.\"/a\", which says 'deny': both share the group 'g'",
    ]


def test_the_main_interpreter_can_have_no_policy(read: Write) -> None:
    """An audit hook there hears of what gunicorn and the acceptor do as well."""
    told = "in the main interpreter an app's calls cannot be told from gunicorn's"

    [own] = faults(read, '[mounts."/"]\napp = "a"\nisolation = "main"\npolicy = { chdir = "warn" }\n')
    [default] = faults(read, '[defaults]\npolicy = "warn"\n[mounts]\n"/" = { app = "a", isolation = "main" }\n')

    assert own.startswith(f'mounts."/".policy: {told}')
    assert default.startswith(f"defaults.policy: {told}")
    assert mount(read, 'app = "a"\nisolation = "main"\npolicy = "allow"', rest='[defaults]\npolicy = "warn"\n').policy == {}


def test_mounts_that_the_scoreboard_has_no_room_for_are_a_fault(read: Write) -> None:
    """They were an exception in gunicorn's master, which ended all of it on SIGHUP."""
    mounts = "".join(f'"/m{number}{"x" * 1500}" = "app"\n' for number in range(800))

    (fault,) = faults(read, f"[mounts]\n{mounts}")

    assert "800 patterns" in fault
    assert "are too long; expected 1048576 at most" in fault


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("/", "/"), ("", "/"), ("/blog/", "/blog"), ("/Blog", "/Blog"), ("A.example", "a.example/"), ("A.Example/V1/", "a.example/V1")],
)
def test_a_mount_is_known_by_what_people_write_for_its_pattern(name: str, pattern: str) -> None:
    assert pattern in spellings_of(name)
