"""Real balancers with what `isowsgi export` writes: HAProxy, Caddy, nginx, Traefik, run in the foreground in a folder of a test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S

# Those that look at a configuration without running it.
KINDS = ("haproxy", "caddy", "nginx")
RUNNING_KINDS = (*KINDS, "traefik")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# What stands around an exported part, by kind.
_TIMES = "".join(f"    timeout {name} {s}s\n" for name, s in (("connect", 10), ("client", 60), ("server", 60), ("check", 10)))
_AROUND = {
    "haproxy": (
        f"global\n    hard-stop-after 20s\n    stats socket unix@admin.sock level admin expose-fd listeners\ndefaults\n{_TIMES}",
        "",
    ),
    "caddy": ("{\n\tauto_https off\n\tlog default {\n\t\tlevel ERROR\n\t}\n}\n", ""),
    "nginx": (
        "daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log crit;\nevents {}\nhttp {\naccess_log off;\n"
        + "".join(f"{kind}_temp_path {kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
        "}\n",
    ),
}

# A listening socket's state in /proc/net/tcp (include/net/tcp_states.h).
_LISTENS = "0A"

# It asks nobody for newer versions, and takes up the file without a pause of seconds.
_TRAEFIK = """
[global]
checkNewVersion = false
[entryPoints.web]
address = "127.0.0.1:0"
[providers]
providersThrottleDuration = "10ms"
[providers.file]
filename = "{file}"
"""


def program(kind: str) -> str:
    """Return the path of a balancer's program, or skip the test."""
    found = shutil.which(kind, path=PATH)
    if found is None:
        pytest.skip(f"{kind} is not installed")
    assert found is not None, "skipped otherwise"
    return found


def written(kind: str, folder: Path, text: str) -> Path:
    """Write a whole configuration around an exported part."""
    before, after = _AROUND.get(kind, ("", ""))
    if kind == "nginx" and os.geteuid() == 0:
        before = f"user {own_name()};\n{before}"
    if kind == "traefik":
        (folder / "site.toml").write_text(text, encoding="utf-8")
        before, text = _TRAEFIK.format(file=folder / "site.toml"), ""
    path = folder / f"{kind}.{'toml' if kind == 'traefik' else 'conf'}"
    path.write_text(before + text + after, encoding="utf-8")
    return path


def own_name() -> str:
    """Return who this process is, whatever $LOGNAME says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # /etc/passwd has no line for it
        return "root"


def check(kind: str, path: Path) -> None:
    """Have the program itself look at a configuration."""
    command = {
        "haproxy": ["-c", "-q", "-f", str(path)],
        "caddy": ["validate", "--adapter", "caddyfile", "--config", str(path)],
        "nginx": ["-t", "-q", "-e", "stderr", "-p", str(path.parent), "-c", str(path)],
    }[kind]
    tried = subprocess.run(
        [program(kind), *command], capture_output=True, text=True, check=False, timeout=DEADLINE_S, env=_env(path.parent)
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr


def start(kind: str, path: Path, launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a balancer in the foreground.

    Args:
        launcher: a command that executes what follows in its arguments.
    """
    command = {
        "haproxy": ["-W", "-db", "-q", "-f", str(path)],
        "caddy": ["run", "--adapter", "caddyfile", "--config", str(path)],
        "nginx": ["-e", "stderr", "-p", str(path.parent), "-c", str(path)],
        "traefik": [f"--configFile={path}"],
    }[kind]
    arguments = [*launcher, program(kind), *command]
    return subprocess.Popen(
        arguments, cwd=path.parent, env=_env(path.parent), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def port_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return where on 127.0.0.1 a balancer listens; None: nowhere yet."""
    folder = Path("/proc", str(process.pid))
    links = [os.readlink(path) for path in (folder / "fd").iterdir() if path.is_symlink()]
    for line in (folder / "net" / "tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == _LISTENS and f"socket:[{inode}]" in links:
            return int(local.partition(":")[2], 16)
    return None


def reload_caddy(path: Path, launcher: Sequence[str]) -> None:
    """Have a running Caddy take up what is in its file now."""
    command = [*launcher, program("caddy"), "reload", "--adapter", "caddyfile", "--config", str(path)]
    subprocess.run(command, cwd=path.parent, env=_env(path.parent), check=True, timeout=DEADLINE_S, capture_output=True)


def _env(folder: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
