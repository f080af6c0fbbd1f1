"""What of a Python is allowed to the sandbox that it starts in: what its venv says may be the app's word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isowsgi.inside import pythonfolders
from isowsgi.shared import landlock, rootsown
from isowsgi.shared.landlock import READ, READ_DIR
from tests.conftest import ROOT

# What no venv opens, whatever it says.
NEVER = {"/", "/usr", "/root", "/home", "/etc", "/etc/ssl", "/etc/ssl/private"}


def venv_of(folder: Path, home: str, python: str = sys.executable) -> str:
    """Make one, and return its executable."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = {home}\n")
    (folder / "bin" / "python").symlink_to(python)
    return str(folder / "bin" / "python")


def installation(folder: Path) -> str:
    """Make what looks like one, with more in its folder than is read of it, and return its folder of executables."""
    library = "lib/python3.12"
    files = (f"{library}/os.py", f"{library}/site-packages/shop.py", "lib/libpython3.12.so.1.0", "lib/x86_64-linux-gnu/libc.so.6")
    for path in (*files, "bin/python3.12", "bin/deploy", ".env"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return str(folder / "bin")


@pytest.mark.parametrize(
    "home", ["/", "/bin", "/root", "/root/bin", "/etc/ssl/private", "/usr", "/home/nobody-of-that-name", "//", "/..", "bin"]
)
def test_what_a_venv_says_of_its_base_opens_no_folder_of_others(tmp_path: Path, home: str) -> None:
    """`home = /bin`, which `/bin/python3 -m venv` writes, led to "/", where lib/python3.11 is on a merged-usr system; so did /root."""
    python = venv_of(tmp_path / "venv", home)

    found = pythonfolders.of(python, ())

    assert str(tmp_path / "venv") in found
    assert not NEVER & found.keys()


@pytest.mark.parametrize(
    "python", ["/bin/python", "/usr/bin/python", "/usr/local/bin/python", "/root/python", "/python", "/nowhere/bin/python"]
)
def test_a_python_that_is_named_opens_no_folder_of_others(python: str) -> None:
    assert not NEVER & pythonfolders.of(python, ()).keys()


def test_where_the_link_of_a_venv_leads_opens_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "shop" / "bin").mkdir(parents=True)
    (tmp_path / "shop" / "bin" / "python").touch()
    python = venv_of(tmp_path / "venv", f"{tmp_path}/shop/bin", f"{tmp_path}/shop/bin/python")

    assert pythonfolders.of(python, ()) == {str(tmp_path / "venv"): READ}


def test_an_installation_of_a_users_counts_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyenv's in somebody's home still works; the same words could name the installation of a neighbour."""
    base = tmp_path / "versions"
    python = venv_of(tmp_path / "venv", installation(base))
    monkeypatch.setattr(rootsown, "is_roots", lambda path: False)

    expected = {
        f"{base}/lib/python3.12": READ_DIR,
        **dict.fromkeys(
            (f"{base}/lib/python3.12/os.py", f"{base}/lib/libpython3.12.so.1.0", f"{base}/bin/python3.12", f"{base}/lib/x86_64-linux-gnu"),
            READ,
        ),
    }
    assert {path: access for path, access in pythonfolders.of(python, ()).items() if path.startswith(str(base))} == expected
    assert not any(path.startswith(str(base)) for path in pythonfolders.of(python, [str(tmp_path)]))
    known = pythonfolders.of(python, (), [str(base)])
    assert {path for path in known if path.startswith(str(base))} == {f"{base}/lib", f"{base}/bin"}


def test_links_in_an_installation_lead_out_of_it_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbour, base = tmp_path / "neighbour", tmp_path / "base"
    neighbour.mkdir()
    home = installation(base)
    (base / "share").symlink_to(neighbour)
    (base / "lib" / "python3.12" / "stolen").symlink_to(neighbour)
    (base / "lib" / "libstolen.so").symlink_to(neighbour)
    python = venv_of(tmp_path / "venv", home)

    for is_roots in (True, False):
        monkeypatch.setattr(rootsown, "is_roots", lambda path, is_roots=is_roots: is_roots)
        found = {os.path.realpath(path) for path in pythonfolders.of(python, ())}
        assert not {str(neighbour), str(tmp_path)} & found


def test_a_cfg_beside_the_executable_opens_not_the_folder_above(tmp_path: Path) -> None:
    """Sites may lie side by side there."""
    python = venv_of(tmp_path / "sites" / "shop", "/nowhere")
    (tmp_path / "sites" / "shop" / "bin" / "python").rename(tmp_path / "sites" / "shop" / "python")

    found = pythonfolders.of(python.replace("/bin/", "/"), ())

    assert str(tmp_path / "sites" / "shop") in found
    assert str(tmp_path / "sites") not in found


def test_a_cfg_that_is_no_file_is_passed_over(tmp_path: Path) -> None:
    python = venv_of(tmp_path / "venv", "/bin")
    (tmp_path / "venv" / "pyvenv.cfg").unlink()
    os.mkfifo(tmp_path / "venv" / "pyvenv.cfg")

    assert not NEVER & pythonfolders.of(python, ()).keys()


STARTS = """
import sys
from isowsgi.inside import pythonfolders, sandbox
from isowsgi.shared import landlock
import os
rules = [(path, landlock.READ) for path in (*sandbox._SYSTEM, *sandbox._SETTINGS)] + list(pythonfolders.of(sys.argv[1], ()).items())
landlock.restrict(rules, None, [])
for path in ("/root", "/etc/ssl/private", "/var"):
    try:
        os.listdir(path)
    except PermissionError:
        pass
    else:
        print("can list", path)
os.execv(sys.argv[1], [sys.argv[1], "-c", "import json, sys; print(sys.prefix)"])
"""


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_a_venv_starts_where_no_more_is_allowed(tmp_path: Path) -> None:
    """One that is made as venvs are, of the tests' own Python, and of the system's by its name without /usr."""
    bases = {f"{sys.base_prefix}/bin": f"{sys.base_prefix}/bin/python3", "/bin": "/bin/python3"}
    for number, (home, base) in enumerate(bases.items()):
        if not os.path.exists(base):
            continue
        python = venv_of(tmp_path / str(number), home, base)
        done = subprocess.run([sys.executable, "-c", STARTS, python], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert (done.stdout.split(), done.stderr) == ([str(tmp_path / str(number))], "")
