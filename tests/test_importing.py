"""`isowsgi import`: every line of a source is told once, and what is written passes the loader."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.cli.importing import import_
from isowsgi.configuration import load
from isowsgi.importing import account, foldertree, kinds, making, uwsgiforms
from isowsgi.importing.account import Account, BadSource
from tests.certificates import Authority
from tests.conftest import examples
from tests.imports import expected, tree

SOURCES = [(kind, source) for kind in expected.KINDS for source in expected.sources(kind)]


@pytest.fixture(scope="module")
def srv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree.make(tmp_path_factory.mktemp("imports"))


@pytest.fixture(scope="module")
def folders(srv: Path) -> dict[str, Path]:
    return {kind: tree.copied(kind, srv) for kind in expected.KINDS}


@pytest.mark.parametrize("kind", expected.KINDS)
def test_each_source_becomes_what_the_file_beside_it_shows(kind: str, tmp_path: Path) -> None:
    """After a change: python -m tests.imports.expected, and read the difference."""
    shown = (tree.HERE / kind / "expected.txt").read_text()

    assert expected.everything(kind, tmp_path).split("##########") == shown.split("##########")


@pytest.mark.parametrize("kind", expected.KINDS)
def test_there_are_at_least_twelve_sources_of_each_kind(kind: str) -> None:
    assert len(expected.sources(kind)) >= 12


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_what_is_written_has_mounts_and_no_faults(kind: str, source: str, folders: dict[str, Path], tmp_path: Path) -> None:
    made = making.make(str(folders[kind] / source), str(tmp_path / "isowsgi.toml"), None, {})
    for path, text in made.files.items():
        Path(path).write_text(text)

    assert made.kind == kind
    assert load(tmp_path / "isowsgi.toml").mounts
    compile((tmp_path / "gunicorn.conf.py").read_text(), "gunicorn.conf.py", "exec")


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_every_line_that_says_something_is_in_exactly_one_entry(kind: str, source: str, folders: dict[str, Path]) -> None:
    made = making.make(str(folders[kind] / source), "isowsgi.toml", None, {})
    told = [(entry.at.file, line) for entry in made.entries for line in entry.at.lines]

    assert len(told) == len(set(told))
    assert len(told) + made.quiet_lines == sum(len(account.lines_of(Path(path).read_text())) for path in made.sources)
    assert [entry for entry in made.entries if entry.notes == (account.UNKNOWN,)] == []


def told_of(kind: str, name: str, text: str) -> tuple[Account, list[tuple[str, int]]] | None:
    """Return the account of a text, and the lines in its entries; None if it is refused, with the line, as test_bad_input shows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(text, newline="")
        made_of = Account()
        try:
            kinds.READERS[kind](str(path), made_of, {})
        except BadSource:
            return None
    return made_of, [(entry.at.file, line) for entry in made_of.entries() for line in entry.at.lines]


WORDS = (
    *(
        "module",
        "mount",
        "chdir",
        "env",
        "if-env",
        "if-exists",
        "if-not-env",
        "endif",
        "for",
        "endfor",
        "set-ph",
        "threads",
        "harakiri",
        "ini",
    ),
    *("else", "socket", "http", "home", "pythonpath", "static-map", "cron", "log-4xx", "nonsense", "processes", "uid", "touch-reload"),
    "manage-script-name",
)
VALUES = (
    "",
    "1",
    "app:app",
    "a=b",
    "/x=app:app",
    "%(nonsense)",
    "%d",
    "$(HOME)",
    "/srv",
    ":8000",
    "/run/x.sock",
    "a b c",
    "=",
    "%%",
    "\x00",
    "é",
    "%(a ",
)
INI_LINES = st.one_of(
    st.builds("{} = {}".format, st.sampled_from(WORDS), st.sampled_from(VALUES)),
    st.sampled_from(["[uwsgi]", "[other]", "# comment", "; comment", "", "   ", "\t", "endif", "need-app"]),
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n"), max_size=20),
)


@given(st.lists(INI_LINES, max_size=25))
@examples(200)
def test_no_line_of_any_ini_file_is_dropped(lines: list[str]) -> None:
    """Or the file is refused, with the line."""
    text = "\n".join(["[uwsgi]", *lines])
    if (read := told_of("uwsgi", "x.ini", text)) is None:
        return
    _, told = read
    said = [line for line in text.split("\n") if line.strip(" \t\r") and line.strip(" \t\r")[0] not in ";#"]

    assert len(told) == len(set(told)) == len(said)


APACHE_LINES = st.one_of(
    st.sampled_from(
        [
            *(
                "<VirtualHost *:80>",
                "</VirtualHost>",
                "<Directory /srv>",
                "</Directory>",
                "<IfModule !x>",
                "</IfModule>",
                "<If true>",
                "</If>",
            ),
            *("ServerName a.example", "ServerAlias *.b.example c.*", "WSGIScriptAlias / /srv/a.wsgi", "WSGIScriptAlias /a /srv/b.wsgi \\"),
            *(
                "WSGIDaemonProcess d threads=2",
                "WSGIProcessGroup d",
                "SetEnv A b",
                "Alias /s /srv/s",
                "Redirect /o /n",
                "Define A b",
                "Use X",
            ),
            *(
                "# comment",
                "",
                "  \\",
                "Require all granted",
                "Options None",
                *("SetHandler wsgi-script", "SetHandler None", "AddHandler cgi-script .cgi", "RewriteRule ^ - [H=x]", "AddType x-httpd- a"),
                *("<Files *.py>", "</Files>", '<FilesMatch "[[">', "</FilesMatch>", "<Macro a $b>", "</Macro>", "SetHandler"),
                'Nonsense ${A} "quoted',
                "DocumentRoot /srv",
                "LoadModule a b",
            ),
        ]
    ),
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n"), max_size=20),
)


@given(st.lists(APACHE_LINES, max_size=25))
@examples(200)
def test_no_line_of_any_apache_file_is_dropped(lines: list[str]) -> None:
    """Or the file is refused, with the line."""
    text = "\n".join(lines)
    if (read := told_of("apache", "x.conf", text)) is None:
        return
    made_of, told = read

    assert len(told) == len(set(told))
    assert len(told) + made_of.quiet_lines() == len(account.lines_of(text))


def test_placeholders_of_uwsgi_are_filled_in_as_it_does(folders: dict[str, Path]) -> None:
    made = making.make(str(folders["uwsgi"] / "names.ini"), "isowsgi.toml", None, {})

    assert 'IMPORT_NAME = "names.ini in uwsgi"' in made.files["isowsgi.toml"]
    assert 'IMPORT_SUM = "404"' in made.files["isowsgi.toml"]
    assert 'IMPORT_HOST = "$(IMPORT_NOWHERE)"' in made.files["isowsgi.toml"]


def test_conditions_are_decided_by_the_environment_of_the_import(folders: dict[str, Path]) -> None:
    made = making.make(str(folders["uwsgi"] / "flask.ini"), "isowsgi.toml", None, {"IMPORT_VENV": "/nowhere"})

    assert '# venv = "/nowhere"' in made.files["isowsgi.toml"]
    assert "IMPORT_VENV_IS" not in made.files["isowsgi.toml"]


def test_certificates_are_taken_over_where_every_app_has_one(tmp_path: Path) -> None:
    """gunicorn speaks TLS on all of its addresses or on none; with a pair that cannot be served nothing would start."""
    (tmp_path / "app.wsgi").write_text("")
    certificate, key = Authority(tmp_path).sign("server", hosts=["a.example", "b.example"])
    hosts = [f"<VirtualHost *:443>\nServerName {name}.example\nSSLCertificateFile {certificate}\n" for name in "ab"]
    end = f"SSLCertificateKeyFile {key}\nWSGIScriptAlias / {tmp_path}/app.wsgi\n</VirtualHost>\n"
    plain = f"<VirtualHost *:80>\nServerName c.example\nWSGIScriptAlias / {tmp_path}/app.wsgi\n</VirtualHost>\n"

    def made(text: str, name: str = "x.conf") -> making.Made:
        (tmp_path / name).write_text(text)
        return making.make(str(tmp_path / name), str(tmp_path / "isowsgi.toml"), None, {})

    def tables(text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = tomllib.loads(made(text).files[str(tmp_path / "isowsgi.toml")]).get("tls", [])
        return found

    pair = {"certificate": str(certificate), "key": str(key)}
    assert tables(hosts[0] + end + hosts[1] + end) == [{"hosts": ["a.example"], **pair}, {"hosts": ["b.example"], **pair}]
    assert tables(hosts[0] + end + plain) == []
    refused = hosts[0] + end.replace(str(key), "/nowhere.key")
    assert tables(refused) == []
    assert "# certificate = " in made(refused).files[str(tmp_path / "isowsgi.toml")]

    server = made(f"[uwsgi]\nmodule = a:app\nhttps = :443,{certificate},{key}\n", "x.ini").files[str(tmp_path / "gunicorn.conf.py")]
    assert f"certfile = '{certificate}'\nkeyfile = '{key}'\nbind = [':443']" in server
    assert "certfile" not in made(f"[uwsgi]\nmodule = a:app\nhttp = :80\nhttps = :443,{certificate},{key}\n", "x.ini").files.popitem()[1]


def test_of_a_folder_with_conf_files_apache_reads_no_others_and_that_is_told(tmp_path: Path) -> None:
    """A README in conf.d, or a site that was switched off by another name, was taken for configuration."""
    (tmp_path / "app.wsgi").write_text("")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "README").write_text("This folder\n\nholds sites.\n")
    (tmp_path / "conf.d" / "b.conf.off").write_text(f"WSGIScriptAlias /off {tmp_path}/app.wsgi\n")
    (tmp_path / "conf.d" / "a.conf").write_text(f"WSGIScriptAlias /a {tmp_path}/app.wsgi\n")
    made = making.make(str(tmp_path / "conf.d"), str(tmp_path / "isowsgi.toml"), "apache", {})

    assert re.findall(r'\[mounts."(.*)"\]', made.files[str(tmp_path / "isowsgi.toml")]) == ["/a"]
    told = {(Path(entry.at.file).name, entry.at.lines): entry.notes[0] for entry in made.entries if entry.outcome is account.Outcome.LEFT}
    assert told.keys() == {("README", (1, 3)), ("b.conf.off", (1,))}
    assert all("Apache reads the *.conf of such a folder only" in note for note in told.values())


APACHE_PROGRAMS = """
WSGIDaemonProcess api threads=2
Alias /api {srv}/api-server
Alias /scripts {srv}/scripts
Alias /admin {srv}/admin
Alias /cgi {srv}/cgi
Alias /static {srv}/static
<Location /api>
  SetHandler wsgi-script
  WSGIProcessGroup api
</Location>
<Directory {srv}/scripts>
  AddHandler wsgi-script .py
</Directory>
<Directory {srv}/cgi/bin>
  SetHandler cgi-script
</Directory>
<FilesMatch "\\.php$">
  SetHandler application/x-httpd-php
</FilesMatch>
<Location /static>
  SetHandler None
</Location>
"""


@pytest.mark.parametrize("without", ["", "FilesMatch"])
def test_what_apache_ran_is_an_app_or_left_and_never_files_whose_source_anybody_could_read(tmp_path: Path, without: str) -> None:
    """An Alias to an app's script, with SetHandler wsgi-script, became a mount that sent the script."""
    for name in ("scripts/a.py", "admin/index.php", "cgi/bin/x", "cgi/y.css", "static/s.css"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "api-server").write_text("application = None\n")
    text = APACHE_PROGRAMS.format(srv=tmp_path)
    if without:  # it is where a site does not include it
        text = re.sub(rf"(?s)<{without}.*</{without}>\n", "", text)
    (tmp_path / "x.conf").write_text(text)
    made = making.make(str(tmp_path / "x.conf"), str(tmp_path / "isowsgi.toml"), None, {})
    (tmp_path / "isowsgi.toml").write_text(made.files[str(tmp_path / "isowsgi.toml")])

    mounts = {
        mount.pattern: mount.app.target if mount.files is None else mount.files.path for mount in load(tmp_path / "isowsgi.toml").mounts
    }
    assert mounts == {
        "/api": f"{tmp_path}/api-server",
        "/scripts/a.py": f"{tmp_path}/scripts/a.py",
        "/static": f"{tmp_path}/static",
    }
    left = [entry.text.split()[1] for entry in made.entries if any("everybody could read them" in note for note in entry.notes)]
    assert left == ["/admin", "/cgi"]
    assert made.proxy == [f"location /static/ {{ alias {tmp_path}/static/; }}"]


class Imported:
    """What a configuration of Apache's becomes, before the loader judges it.

    Attributes:
        mounts: app or folder by pattern.
        notes: of each line, by its text.
        proxy: lines for nginx.
    """

    def __init__(self, folder: Path, text: str) -> None:
        (folder / "x.conf").write_text(text.replace("/srv", f"{folder}/srv"))
        told = Account()
        draft = kinds.READERS["apache"](str(folder / "x.conf"), told, {})
        self.mounts = {mount.pattern: (mount.app or mount.settings["static"]).removeprefix(str(folder)) for mount in draft.mounts}
        self.notes = {entry.text.replace(str(folder), ""): (entry.outcome, entry.notes[0]) for entry in told.entries()}
        self.proxy = draft.proxy


def made_files(folder: Path, names: str) -> None:
    for name in names.split():
        path = folder / "srv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def section(opening: str, handler: str = "cgi-script") -> str:
    return f"<{opening}>\nSetHandler {handler}\n</{opening.split()[0]}>\n"


# Of each: what is in the folder, what Apache's configuration says, and what ran.
PROGRAMS = {
    "a suffix, below": ("n/admin/index.inc", "AddHandler application/x-php .inc", "application/x-php"),
    "PHP, below": ("n/admin/index.php", "", "PHP"),
    "a suffix before another": ("n/x.cgi.en", "AddHandler cgi-script .cgi", "cgi-script"),
    "a type that stands for a handler": ("n/x.inc", "AddType application/x-httpd-php .inc", "application/x-httpd-php"),
    "a filter that runs what is in a page": ("n/x.shtml", "AddOutputFilter INCLUDES .shtml", "includes"),
    "a rule that says what runs": ("n/x.inc", "RewriteRule \\.inc$ - [NC,H=x-php]", "x-php"),
    "a folder": ("n/run.sh", section("Directory /srv/n"), "cgi-script"),
    "a folder below": ("n/x.css", section("Directory /srv/n/bin"), "cgi-script"),
    "a path below": ("n/x.css", section("Location /n/bin"), "cgi-script"),
    "an expression for the folder": ("n/run.sh", section('DirectoryMatch "^/srv/n"'), "cgi-script"),
    "one for a folder below": (
        "n/a/bin/x",
        section('DirectoryMatch "^/srv/n/[^/]+/bin$"'),
        "cgi-script",
    ),
    "one for a path below": ("n/bin/x", section('LocationMatch "^/n/bin"'), "cgi-script"),
    "one of a section with a tilde": ("n/bin/x", section('Location ~ "/bin/"'), "cgi-script"),
    "one that Python does not know": ("n/x", section('LocationMatch "^/\\Qy\\E"'), "cgi-script"),
    "one with a set that Python reads otherwise": (
        "n/x",
        section('FilesMatch "^[[:alpha:]]$"'),
        "cgi-script",
    ),
    "wildcards": ("n/cgi/x", section("Directory /srv/*/cgi"), "cgi-script"),
    "wildcards above": ("n/x/y", section("Directory /srv/?"), "cgi-script"),
    "a variable that is not known": ("n/x", section("Directory ${BASE}/n"), "cgi-script"),
    "a macro's place": ("n/x", f"<Macro m $place>\n{section('Directory $place')}</Macro>", "cgi-script"),
    "a macro's suffix": ("n/x.inc", "<Macro m $ext>\nAddHandler x-php .$ext\n</Macro>", "x-php"),
    "a macro's names": ("n/x.inc", f"<Macro m $ext>\n{section('Files *.$ext')}</Macro>", "cgi-script"),
    "what is not decided here": ("n/x", section("If true"), "cgi-script"),
    "a module that is not here": ("n/x.inc", "<IfModule mod_php.c>\nAddHandler x-php .inc\n</IfModule>", "x-php"),
    ".htaccess": ("n/a/.htaccess", "", "/srv/n/a/.htaccess"),
    "a None for some files only": ("n/x", "SetHandler cgi-script\n<Files *.css>\nSetHandler None\n</Files>", "cgi-script"),
    "a None that is further away": (
        "n/x",
        section("Location /n") + section("Directory /srv/n", "None"),
        "cgi-script",
    ),
    "a None, which does not undo AddHandler": (
        "n/x.py",
        "AddHandler cgi-script .py\n<Location /n>\nSetHandler None\n</Location>",
        "cgi-script",
    ),
    "an app's file and a program": ("n/a.wsgi n/b.cgi", "AddHandler wsgi-script .wsgi\nAddHandler cgi-script .cgi", "cgi-script"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_folder_is_no_files_if_apache_may_run_something_in_it_or_below(case: str, tmp_path: Path) -> None:
    """Only the folder's own names and nearest sections were looked at: the source of what is below was for everybody."""
    names, text, ran = PROGRAMS[case]
    made_files(tmp_path, names)
    if names.endswith(".htaccess"):
        (tmp_path / "srv" / names).write_text("Options +ExecCGI\n  sethandler cgi-script\n")
    made = Imported(tmp_path, f"Alias //n /srv//n/\n{text}\n")

    assert made.mounts == {}
    assert made.proxy == []
    outcome, note = made.notes["Alias //n /srv//n/"]
    assert outcome is account.Outcome.LEFT
    assert f"({ran})" in note.replace(str(tmp_path), "")


FILES = {
    "a program's suffix within a name": ("n/jquery.plugin.js n/a.python", "AddHandler cgi-script .cgi .pl .py"),
    "programs elsewhere": ("n/x.css", section("Directory /srv/m") + section("Location /nn")),
    "expressions for others": ("n/x.css", section('DirectoryMatch "^/srv/.*/cgi-bin/"')),
    "names that are not there": ("n/x.css", section('FilesMatch "\\.ph(ar|p|tml)$"', "application/x-httpd-php")),
    "a None that is nearer": (
        "n/x.css",
        section("Location /", "python-program") + section("Location /n", "None"),
    ),
    "a None of a folder": ("n/x.css", "SetHandler python-program\n<Directory /srv/n>\nSetHandler default-handler\n</Directory>"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_folder_in_which_apache_ran_nothing_is_files(case: str, tmp_path: Path) -> None:
    """A `SetHandler None` was not seen below another one, and `.pl` was found in jquery.plugin.js."""
    names, text = FILES[case]
    made_files(tmp_path, names)
    made = Imported(tmp_path, f"{text}\nAlias /n /srv/n\n")

    assert made.mounts == {"/n": "/srv/n"}
    assert made.proxy == [f"location /n/ {{ alias {tmp_path}/srv/n/; }}"]


def test_an_alias_of_one_file_is_an_app_or_a_program_or_a_file(tmp_path: Path) -> None:
    made_files(tmp_path, "app run robots.txt")
    made = Imported(
        tmp_path,
        "Alias /app /srv/app\nAlias /run /srv/run\nAlias /robots.txt /srv/robots.txt\nSetHandler cgi-script\n"
        + section("Location /app", "wsgi-script")
        + section("Location /run/", "None")
        + section("Location /robots.txt", "None"),
    )

    assert made.mounts == {"/app": "/srv/app", "/robots.txt": "/srv/robots.txt"}
    assert made.notes["Alias /run /srv/run"][0] is account.Outcome.LEFT


def test_a_htaccess_is_not_sent_by_the_proxy_either(tmp_path: Path) -> None:
    """Apache sends no .ht* by a line that is not a site's; nginx sends what is in the folder."""
    made_files(tmp_path, "n/a/.htpasswd n/x.css m/x.css")
    host = "<VirtualHost *:80>\nServerName a.example\nAlias /m /srv/m\nAlias /n /srv/n\n</VirtualHost>\n"
    made = Imported(tmp_path, f"Alias /all /srv/n\n{host}")

    assert made.mounts == {"a.example/m": "/srv/m", "a.example/n": "/srv/n"}
    assert made.proxy == [f"location /m/ {{ alias {tmp_path}/srv/m/; }}"]
    assert made.notes["Alias /n /srv/n"] == (account.Outcome.CHANGED, "a/.htpasswd is not sent, and not read: what it says is the proxy's")
    assert made.notes["Alias /all /srv/n"][1].endswith("without a/.htpasswd, which it would send")


def test_a_folder_that_cannot_be_looked_at_is_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_files(tmp_path, "deep/a/x.css deep/b/y.css many/a many/b many/c many/d few/a")
    monkeypatch.setattr(foldertree, "_MOST_NAMES", 4)
    (tmp_path / "srv/few/above").symlink_to(tmp_path / "srv/few")
    text = "Alias /gone /srv/gone\nAlias /deep /srv/deep\nAlias /many /srv/many\nAlias /few /srv/few\nAlias /unknown ${WHERE}/few\n"
    real = os.scandir

    def scandir(path: str) -> Any:  # the tests may run as root, who may look everywhere
        if path.endswith("deep/b"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    made = Imported(tmp_path, text)

    assert made.mounts == {"/few": "/srv/few"}
    assert len(made.proxy) == 1
    left = [note.replace(str(tmp_path), "") for outcome, note in made.notes.values() if outcome is account.Outcome.LEFT]
    assert [re.findall(r"\((.*?)\)", note)[0] for note in left] == [
        "/srv/gone: no such file or folder here",
        "/srv/deep/b: Permission denied",
        "it has more than 4 files",
        "${WHERE}/few: no such file or folder here",
    ]


def test_of_a_folder_with_scripts_only_these_are_apps_and_that_is_told(tmp_path: Path) -> None:
    """All of its .py files were, so that modules ran as apps; and the rest was dropped without a word."""
    made_files(tmp_path, "mixed/app.wsgi mixed/config.py mixed/logo.png mixed/more/app.wsgi all/a.py all/b.txt all/lib/c.py none/x.css")
    made = Imported(
        tmp_path,
        "Alias /mixed /srv/mixed\nAlias /all /srv/all\nAlias /none /srv/none\n<Directory /srv/mixed>\n<Files app.wsgi>\n"
        "SetHandler WSGI-Script\n</Files>\n</Directory>\n<Location /all>\nSetHandler wsgi-script\n</Location>\n"
        "<Location /none>\nSetHandler wsgi-script\n</Location>\n",
    )

    assert set(made.mounts) == {"/mixed/app.wsgi", "/mixed/more/app.wsgi", "/all/a.py"}
    assert made.notes["Alias /mixed /srv/mixed"][1].endswith(
        "app.wsgi, more/app.wsgi; its other files, such as config.py, are not served: move them to a folder of files"
    )
    assert made.notes["Alias /none /srv/none"][0] is account.Outcome.LEFT


def test_a_handler_is_taken_over_only_if_it_made_an_app_of_an_alias(tmp_path: Path) -> None:
    """Any mount below it was enough: scripts below DocumentRoot had no mount, and the line that ran them was "taken over"."""
    made_files(tmp_path, "www/hello.wsgi one.wsgi apps/a.wsgi")
    made = Imported(
        tmp_path,
        "WSGIScriptAlias /one /srv/one.wsgi\nDocumentRoot /srv/www\nAddHandler wsgi-script .wsgi\n"
        "Alias /apps /srv/apps\n<Directory /srv/apps>\nAddHandler WSGI-script wsgi\n</Directory>\n",
    )

    assert set(made.mounts) == {"/one", "/apps/a.wsgi"}
    assert made.notes["AddHandler WSGI-script wsgi"][0] is account.Outcome.TAKEN
    outcome, note = made.notes["AddHandler wsgi-script .wsgi"]
    assert outcome is account.Outcome.LEFT
    assert "write a mount for each one" in note


def test_a_host_whose_app_is_an_alias_takes_all_paths_as_one_with_a_scriptalias(tmp_path: Path) -> None:
    """Requests for unknown hosts were 404, only for how another host is written."""
    made_files(tmp_path, "a.wsgi b.wsgi")
    made = Imported(
        tmp_path,
        "<VirtualHost *:80>\nServerName a.example\nWSGIScriptAlias / /srv/a.wsgi\n</VirtualHost>\n<VirtualHost *:80>\n"
        "ServerName b.example\nAlias / /srv/b.wsgi\n<Location />\nSetHandler wsgi-script\n</Location>\n</VirtualHost>\n",
    )

    assert made.mounts == {"/": "/srv/a.wsgi", "b.example/": "/srv/b.wsgi"}


def test_an_alias_for_all_hosts_is_no_files_if_one_host_runs_something_in_it(tmp_path: Path) -> None:
    made_files(tmp_path, "n/x.css")
    host = "<VirtualHost *:80>\nServerName a.example\n<Location /n>\nSetHandler cgi-script\n</Location>\n</VirtualHost>\n"
    made = Imported(tmp_path, f"Alias /n /srv/n\n{host}<VirtualHost *:80>\nServerName b.example\nAlias /m /srv/n\n</VirtualHost>\n")

    assert made.mounts == {"b.example/m": "/srv/n"}


def test_variables_of_a_host_without_an_address_are_its_apps(tmp_path: Path) -> None:
    (tmp_path / "app.wsgi").write_text("")
    (tmp_path / "x.conf").write_text(f"<VirtualHost>\nSetEnv A b\nWSGIScriptAlias / {tmp_path}/app.wsgi\n</VirtualHost>\n")
    made = making.make(str(tmp_path / "x.conf"), "isowsgi.toml", None, {})

    assert 'env = {A = "b"}' in made.files["isowsgi.toml"]


BAD = [
    ("x.ini", "[uwsgi]\nmodule = a\nthreads = many\n", "x.ini:3: expected a whole number for threads, got 'many'"),
    ("x.ini", "[uwsgi]\nif-env = A\nif-env = B\n", "x.ini:3: expected the end of 'x.ini:2' before another condition"),
    ("x.ini", "[uwsgi]\nini = gone.ini\n", "gone.ini: expected a file, got none"),
    ("x.ini", "[uwsgi]\nini = x.ini\n", "expected at most 200 included files"),
    ("x.ini", "[uwsgi]\nmaster = 1\n", "expected at least one WSGI app, got none"),
    ("x.xml", "<uwsgi><module>a</uwsgi>", "x.xml:1: expected XML, got mismatched tag"),
    ("x.xml", '<!DOCTYPE u [<!ENTITY a "b">]><uwsgi><module>&a;</module></uwsgi>', "x.xml:1: expected no entity declarations"),
    ("x.yaml", "uwsgi:\n  a: [\n", "x.yaml:3: expected YAML, got"),
    ("x.json", '{"uwsgi": {"a": }}', "x.json:1: expected JSON, got a fault in column 17"),
    ("x.conf", "WSGIScriptAlias /a\n", "x.conf:1: expected a path and a script after WSGIScriptAlias, got '/a'"),
    (
        "x.conf",
        "Listen 80\n<VirtualHost *:80>\n</Directory>\n",
        "x.conf:3: expected </VirtualHost>, which x.conf:2 opens, got '</Directory>'",
    ),
    ("x.conf", "<VirtualHost *:80>\n", "x.conf:1: expected </VirtualHost> before the end of the file"),
    ("x.conf", "WSGIDaemonProcess a threads=x\n", "x.conf:1: expected a whole number for threads, got 'x'"),
    ("x.ini", "[uwsgi]\nmodule=a:app\nprocesses=$(NO_SUCH)\n", "x.ini:3: expected NO_SUCH in the environment, for processes"),
    ("x.ini", "[uwsgi]\nfor-readline = no.env\nenv = %(_)\nendfor =\n", "x.ini:2: no.env: expected a file, got none"),
    ("x.conf", "Include x.conf\n", "expected at most 20 files within files"),
    ("x.json", '{"listeners": {\n"a" 1}}', "x.json:2: expected JSON, got a fault in column 5"),
    (
        "x.json",
        '{"listeners": {"*:80": {"pass": "applications/a"}},\n"applications": {"a": {"type": "python",\n"module": "os; x"}}}',
        "x.json:3: expected a name of Python's for module, got 'os; x'",
    ),
    ("x.txt", "hello\n", "x.txt: expected a configuration of uWSGI, Apache or NGINX Unit; say which with --from"),
]


@pytest.mark.parametrize(("name", "text", "fault"), BAD)
def test_bad_input_is_told_with_file_line_and_what_was_expected(
    name: str, text: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    result = CliRunner().invoke(import_, [name])

    assert result.exit_code == 2
    assert fault in result.stderr


@pytest.fixture
def ini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("a.ini").write_text("[uwsgi]\nmodule = a:app\nenv = PASSWORD=hush\n")
    os.chmod("a.ini", 0o640)
    return "a.ini"


def test_nothing_is_overwritten_without_force(ini: str) -> None:
    Path("gunicorn.conf.py").write_text("mine")
    refused = CliRunner().invoke(import_, [ini, "-o", "isowsgi.toml"])

    assert refused.exit_code == 2
    assert "gunicorn.conf.py: expected no such file; --force overwrites it" in refused.stderr
    assert not Path("isowsgi.toml").exists()
    assert Path("gunicorn.conf.py").read_text() == "mine"

    assert CliRunner().invoke(import_, [ini, "-o", "isowsgi.toml", "--force"]).exit_code == 0
    assert "isowsgi.Worker" in Path("gunicorn.conf.py").read_text()


def test_who_may_not_read_the_source_may_not_read_what_is_made_of_it(ini: str) -> None:
    CliRunner().invoke(import_, [ini, "-o", "isowsgi.toml"])

    assert Path("isowsgi.toml").stat().st_mode & 0o077 in (0o040, 0o000)


UNIT_APP = (
    '"listeners": {"*:80": {"pass": "applications/a"}}, "applications": {"a": {"type": "python", "module": "m", "environment": {%s}}}'
)


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("a.ini", None, "a.ini:3: env = PASSWORD=..."),
        ("a.xml", "<uwsgi><module>a:app</module><env>PASSWORD=hush</env></uwsgi>", "a.xml:1: <uwsgi>..."),
        ("a.yaml", "uwsgi:\n  module: a:app\n  env:\n    - A=b\n    - PASSWORD=hush\n", "a.yaml:5: - PASSWORD=..."),
        ("a.json", '{"uwsgi": {"module": "a:app", "my": "hush", "env": ["A=b", "PASSWORD=%(my)"]}}', "a.json:1: ..."),
        ("a.json", '{"uwsgi": {"module": "a:app",\n"env": ["A=b", "PASSWORD=hush"]}}', 'a.json:2: "env": ["A=...'),
        ("a.json", "{" + UNIT_APP % '"A": "b", "PASSWORD": "hush"' + "}", "a.json:1: ..."),
        ("a.json", "{" + UNIT_APP.replace('"env', '\n"env') % '"A": "b", "PASSWORD": "hush"' + "}", 'a.json:2: "environment": {"A...'),
        ("a.json", "{" + UNIT_APP % '\n"PASSWORD":\n"hush"\n' + "}", 'a.json:2: "PASSWORD":...'),
        ("a.conf", "SetEnv PASSWORD hush\nWSGIScriptAlias / /a.wsgi\n", "a.conf:1: SetEnv PASSWORD ..."),
        ("a.conf", "Define P hush\nSetEnv PASSWORD ${P}\nWSGIScriptAlias / /a.wsgi\n", "a.conf:1: Define P ..."),
        ("a.conf", "SetEnv PASSWORD hush\nSetEnvIf Host . KEY=hush\nWSGIScriptAlias / /a.wsgi\n", "a.conf:2: SetEnvIf Host ..."),
        ("a.ini", "[uwsgi]\nmodule = a:app\nmy = hush\nenv = PASSWORD=%(my)\n", "a.ini:3: my = ..."),
        ("a.ini", "[uwsgi]\nmodule = a:app\nset-placeholder = my=hush\nenv = PASSWORD=%(my)\n", "a.ini:3: set-placeholder = my=..."),
        ("a.ini", "[uwsgi]\nmodule = a:app\nenv = PASSWORD=hush\nenv = SECRET hush\n", "a.ini:4: env = ..."),
        ("a.ini", "[uwsgi]\nmodule = a:app\nenv = PASSWORD=hush\n[no]\nenv = hush\n", "a.ini:5: env = ..."),
        ("a.xml", "<uwsgi><module>a:app</module>\n<my>hush</my>\n<env>PASSWORD=%(my)</env></uwsgi>", "a.xml:2: <my>..."),
        ("a.yaml", "uwsgi:\n  module: a:app\n  my: hush\n  env: PASSWORD=%(my)\n", "a.yaml:3: my: ..."),
        ("a.yaml", "uwsgi:\n  module: a:app\n  env:\n    - PASSWORD=hush\n    - hush it\n", "a.yaml:5: - ..."),
    ],
)
def test_values_of_variables_are_in_the_file_and_not_in_the_report(ini: str, name: str, text: str | None, shown: str) -> None:
    """Of JSON and of lists in YAML they were in the report, too; so were those of placeholders, Define, and of what sets no variable."""
    if text is not None:
        Path(name).write_text(text)
        if name == "a.conf":
            Path("a.wsgi").write_text("")
            Path(name).write_text(text.replace("/a.wsgi", f"{Path.cwd()}/a.wsgi"))
    result = CliRunner().invoke(import_, [name])

    assert 'PASSWORD = "hush"' in result.stdout, result.output
    assert "hush" not in result.stderr
    assert shown in result.stderr


def test_the_report_is_there_for_programs(ini: str) -> None:
    report = json.loads(CliRunner().invoke(import_, [ini, "--json"]).stdout)

    assert report["kind"] == "uwsgi"
    assert [(line["lines"], line["outcome"]) for line in report["lines"]] == [([1], "taken over"), ([2], "taken over"), ([3], "taken over")]
    assert set(report["files"]) == {"isowsgi.toml", "gunicorn.conf.py"}


def test_a_comment_of_the_source_cannot_become_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of files are in comments of what is written."""
    monkeypatch.chdir(tmp_path)
    name = 'a\n[mounts."/"].ini'
    Path(name.replace("/", "_")).write_text("[uwsgi]\nmodule = a:app\n")
    made = making.make(name.replace("/", "_"), "isowsgi.toml", None, {})

    assert made.files["isowsgi.toml"].count("[mounts") == 2
    assert made.files["isowsgi.toml"].splitlines()[0].startswith("# Made by")


def test_an_ini_section_is_known_by_its_own_line_only() -> None:
    assert uwsgiforms.looks_like_ini("a\n [uwsgi] \nb")
    assert not uwsgiforms.looks_like_ini("see [uwsgi] there")


def test_apps_with_other_users_than_the_first_have_them_as_their_mounts(tmp_path: Path) -> None:
    """gunicorn's own is one for all; a mount's is that of its process."""
    (tmp_path / "app.wsgi").write_text("")
    daemons = [("a", "user=daemon group=daemon"), ("b", "user=nobody group=www-data"), ("c", "group=daemon user=daemon"), ("d", "user=bin")]
    text = ""
    for name, options in daemons:
        text += f"WSGIDaemonProcess {name} {options}\nWSGIScriptAlias /{name} {tmp_path}/app.wsgi process-group={name}\n"
    (tmp_path / "site.conf").write_text(text)
    made = making.make(str(tmp_path / "site.conf"), str(tmp_path / "isowsgi.toml"), None, {})
    Path(tmp_path, "isowsgi.toml").write_text(made.files[str(tmp_path / "isowsgi.toml")])

    users = {mount.pattern: mount.user for mount in load(tmp_path / "isowsgi.toml").mounts}
    assert users == {"/a": "", "/b": "nobody:www-data", "/c": "", "/d": "bin"}
    assert "user = 'daemon'\ngroup = 'daemon'\n" in made.files[str(tmp_path / "gunicorn.conf.py")]
    assert any("user of the mount, whose process runs as nobody:www-data" in note for entry in made.entries for note in entry.notes)
