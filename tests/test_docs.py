"""The pages say what the code does: keys, limits, config files, messages, commands and links are checked against it.

A ```toml block is a whole config file that the loader must accept. In an HTML comment on the line before it a page may say otherwise:

    <!-- faulty -->                    refused, with exactly the faults that the next ```text block shows
    <!-- faulty, with old old/.venv -->    the same, in a folder where these exist
    <!-- fragment -->                  no whole file; not looked at
    <!-- config -->                    of the how-to on containers, whose own test serves it: its folders are there
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gunicorn
import pytest
from gunicorn.config import Config as GunicornConfig

import isowsgi
from isowsgi.configuration import ConfigError, load, values
from isowsgi.shared import policies
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIG_PAGE = ROOT / "docs/reference/config.md"
ENVIRONMENT_PAGE = ROOT / "docs/reference/environment.md"
ISOLATION_PAGE = ROOT / "docs/explanation/isolation.md"
SECURITY_PAGE = ROOT / "SECURITY.md"
TROUBLE_PAGE = ROOT / "docs/howto/troubleshoot.md"

# Where the messages of the log come from; a text that is broken over two lines of source is joined.
SOURCES = "".join(
    re.sub(r'"\n\s*f?"', "", path.read_text())
    for package in (Path(isowsgi.__file__).parent, Path(gunicorn.__file__).parent)
    for path in sorted(package.rglob("*.py"))
)

# Where the examples' config files lie, as the messages in the pages have it.
SHOWN_FOLDERS = ("/srv/sites", "/home/you/sites")

# The two forms in which a command names the config file, and those of them that gunicorn can import for --check-config.
FORM = re.compile(r"[\w./-]+\.toml|isowsgi:config\(\"[\w./-]+\.toml\"\)")
IMPORTABLE_FORM = re.compile(r"isowsgi\.toml|isowsgi:config\(.*\)")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    mark: str  # what the HTML comment before it says; "" for none
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, match.start("text")), match["language"], match["mark"] or "", match["text"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
TOML = [block for block in BLOCKS if block.language == "toml" and block.mark.split()[:1] not in (["fragment"], ["append"], ["config"])]


def make(folder: Path, name: str) -> None:
    """Make a folder, or a virtual environment as far as the loader looks at one."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    if name.endswith("venv"):
        (folder / name / "pyvenv.cfg").write_text("version = {}.{}.0\n".format(*sys.version_info[:2]))
        Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder / name)})).mkdir(parents=True, exist_ok=True)


def make_what_is_named(folder: Path, data: dict[str, Any]) -> None:
    """Make every folder, venv, Python, env file and script that a config file names."""
    for table in (data.get("defaults", {}), *data["mounts"].values()):
        settings = {"app": table} if isinstance(table, str) else table
        for name in [*listed(settings.get("pythonpath", [])), *listed(settings.get("working_directory", []))]:
            make(folder, name)
        if "venv" in settings:
            make(folder, settings["venv"])
        if "python" in settings:
            make_python(folder / settings["python"])
        target, colon, _ = settings.get("app", "").partition(":")
        script = [target] if "/" in target or (not colon and target.endswith(values.SCRIPT_SUFFIXES)) else []
        for name in listed(settings.get("env_file", [])) + script:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        static = settings.get("static", {})
        for each in static.values() if isinstance(static, dict) else [static]:
            (folder / (each["path"] if isinstance(each, dict) else each)).mkdir(parents=True, exist_ok=True)


def make_python(path: Path) -> None:
    """Make a Python of this version; not a link, which would look for its library in a venv that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    path.chmod(0o755)


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def in_folder(text: str, folder: Path) -> str:
    """Move the absolute paths of an example into a folder, and take a user that every machine has for those that it makes."""
    return re.sub(r'\buser = "\w+', 'user = "nobody', text.replace('"/srv/', f'"{folder}/srv/'))


def faults_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(path.parent)
    with pytest.raises(ConfigError) as caught:
        load(path.name)
    return list(caught.value.faults)


@pytest.mark.parametrize("block", [block for block in TOML if not block.mark], ids=str)
def test_every_config_file_in_the_pages_is_accepted(block: Block, tmp_path: Path) -> None:
    text = in_folder(block.text, tmp_path)
    make_what_is_named(tmp_path, tomllib.loads(text))
    (tmp_path / "isowsgi.toml").write_text(text)

    assert load(tmp_path / "isowsgi.toml").mounts


@pytest.mark.parametrize("block", [block for block in TOML if block.mark], ids=str)
def test_a_faulty_config_file_has_the_faults_that_the_page_shows(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, _, named = block.mark.partition(", with ")
    assert kind == "faulty"
    for name in named.split():
        make(tmp_path, name)
    (tmp_path / "isowsgi.toml").write_text(block.text)
    answer = next(other for other in BLOCKS[BLOCKS.index(block) :] if other.language == "text")
    shown = [line[line.index("isowsgi.toml: ") :] for line in answer.text.splitlines() if "isowsgi.toml: " in line]
    for folder in SHOWN_FOLDERS:
        shown = [line.replace(folder, str(tmp_path)) for line in shown]

    assert faults_of(tmp_path / "isowsgi.toml", monkeypatch) == shown


def test_the_config_page_names_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader itself lists the keys when it meets one that is like none of them."""
    (tmp_path / "isowsgi.toml").write_text('zz = 1\n[mounts."/"]\napp = "a"\nzz = 1\n[defaults]\nzz = 1\n[acceptor]\nzz = 1\n')
    lists = [fault.partition("expected one of ")[2] for fault in faults_of(tmp_path / "isowsgi.toml", monkeypatch)]
    assert len(lists) == 4

    page = CONFIG_PAGE.read_text()
    for key in {key for text in lists for key in text.split(", ")}:
        assert any(f"`{text}`" in page for text in (key, f"[{key}]", f"[[{key}]]")), key


LIMITS = {name: value for name, value in vars(values).items() if name.isupper() and type(value) in (int, float)}


@pytest.mark.parametrize("name", LIMITS)
def test_the_config_page_names_every_limit_with_its_value(name: str) -> None:
    [row] = [line for line in CONFIG_PAGE.read_text().splitlines() if line.startswith("|") and f"`{name}`" in line]
    assert f"{LIMITS[name]:.12g}" in re.findall(r"\d+", row)


@pytest.mark.parametrize("value", [*values.ISOLATIONS, *values.CRASH_ACTIONS, *policies.VALUES])
def test_the_config_page_names_every_word_that_a_key_takes(value: str) -> None:
    assert CONFIG_PAGE.read_text().count(f'`"{value}"`') > 1, "once where the keys are listed, and once where it is explained"


def limits_of(page: Path) -> Iterator[tuple[str, float]]:
    """Yield the constants that a page's tables name, with the number in the column before."""
    for line in page.read_text().splitlines():
        for name in re.findall(r"`(isowsgi\.[\w.]+\.[A-Z_]+)`", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            number = re.match(r"[\d,.]+", cells[1])
            assert number is not None, line
            yield name, float(number[0].replace(",", ""))


@pytest.mark.parametrize(("name", "shown"), list(limits_of(ENVIRONMENT_PAGE)))
def test_the_limits_in_the_environment_page_are_the_codes(name: str, shown: float) -> None:
    module, _, constant = name.rpartition(".")
    assert getattr(importlib.import_module(module), constant) == shown


def rows_under(page: Path, head: str) -> list[list[str]]:
    """Return the cells of the table with this beginning."""
    [table] = re.findall(rf"^{re.escape(head)}.*?(?=\n\n|\n\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


CLAIMS = [row[0] for head in ("| what | each app has", "| what | what can happen") for row in rows_under(ISOLATION_PAGE, head)]
PROOFS = [(ISOLATION_PAGE, claim, tests) for claim, tests in rows_under(ISOLATION_PAGE, "| claim | proved by |")]
PROOFS += [(SECURITY_PAGE, claim, tests) for claim, _, tests in rows_under(SECURITY_PAGE, "| it cannot | because | tested by |")]


def test_each_claim_of_the_isolation_page_has_its_tests() -> None:
    assert [claim for page, claim, _ in PROOFS if page == ISOLATION_PAGE] == CLAIMS


@pytest.mark.parametrize(("page", "claim", "proved_by"), PROOFS, ids=[claim[:40] for _, claim, _ in PROOFS])
def test_the_tests_that_prove_a_claim_exist(page: Path, claim: str, proved_by: str) -> None:
    for part in proved_by.split("; "):
        link, _, names = part.partition(": ")
        [file] = re.findall(r"\]\((.*)\)", link)
        tests = re.findall(r"^def (test_\w+)\(", (page.parent / file).read_text(), re.MULTILINE)
        assert names, part
        assert set(re.findall(r"`(\w+)`", names)) == set(names.replace("`", "").split(", ")) <= set(tests), part


def test_the_config_page_names_every_call_that_a_policy_is_about() -> None:
    table = {row[0].strip("`"): row[1] for row in rows_under(CONFIG_PAGE, "| word | calls |")}
    assert list(table) == list(policies.WORDS)
    shown = {"os.exec": "os.exec*", "subprocess.Popen": "subprocess", "_posixsubprocess.fork_exec": "multiprocessing"}
    for call, word in (policies.EVENTS | policies.FUNCTIONS).items():
        if word != "ctypes":  # its events have no functions that apps know
            assert f"`{shown.get(call, call)}`" in table[word], call


def messages() -> Iterator[str]:
    """Yield the texts that the page on troubles quotes from the log, in bold or in its table of answers."""
    text = TROUBLE_PAGE.read_text().replace("\n", " ")
    yield from re.findall(r"\*\*`([^`]+)`", text)
    yield from re.findall(r"\| \d{3} `([^`]+)` \|", text)


# What differs from case to case: error types, numbers, names, mounts, requests, signals, what the system says.
VARIES = re.compile(
    r"(?:\w*Error|SystemExit): |No module named|\d[\d.]*|'[^']*'|GET /\w+(?: HTTP/1\.1)?|/\w+(?: #\d+)?:|isowsgi\.toml|\bkeyfile\b"
    r"|\(?\bSIG\w+[)!]?|_xx\w+|Too many open files|\.\.\."
)


@pytest.mark.parametrize("message", list(messages()))
def test_the_messages_that_the_page_on_troubles_quotes_are_said_somewhere(message: str) -> None:
    for piece in VARIES.split(message):
        text = piece.strip(" ;:,")
        assert len(text) <= 8 or text in SOURCES, text


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_two_headings_of_the_same_name(page: Path) -> None:
    """A link would lead to the first of them only. The changelog repeats "Added" in each version, and nobody links to that."""
    headings = re.findall(r"^#+ .*$", without_blocks(page), re.MULTILINE)

    assert sorted(set(headings)) == sorted(headings)


def test_every_page_is_linked_from_another() -> None:
    links = {(page.parent / name).resolve() for page in PAGES for name in re.findall(r"\]\(([^)\s#]+\.md)", page.read_text())}

    assert [page for page in PAGES if page not in links and page.name != "README.md"] == []


def commands() -> Iterator[tuple[str, str]]:
    """Yield the commands of the pages that run isowsgi's worker, with their places."""
    for block in BLOCKS:
        if block.language == "console":
            for line in block.text.replace("\\\n", " ").splitlines():
                if "-k isowsgi.Worker" in line and line.startswith("$ "):
                    yield line[2:], str(block)
    for page in PAGES:
        for line in re.findall(r"`(gunicorn -k isowsgi\.Worker [^`]+)`", without_blocks(page)):
            yield line, page.name


@pytest.mark.parametrize(("command", "place"), list(commands()))
def test_every_gunicorn_command_has_known_options_and_names_a_config_file(command: str, place: str) -> None:
    words = shlex.split(command)
    parser: argparse.ArgumentParser = GunicornConfig().parser()
    options = parser.parse_args(words[words.index("gunicorn") + 1 :])

    [app] = options.args
    assert FORM.fullmatch(app), place
    if options.check_config or options.print_config:
        assert IMPORTABLE_FORM.fullmatch(app), f"{place}: gunicorn cannot import it"
