"""Write the balancers' files in deploy/ from the mounts of deploy/hosts; with --check, only tell whether one is stale."""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

import pages

# Run from a checkout, they are made by that checkout, whichever isowsgi is installed.
sys.path.insert(0, str(pages.ROOT))

from isowsgi.cli.main import main

DEPLOY = pages.ROOT / "deploy"
SERVERS = "web1=10.0.0.11:8000,web2=10.0.0.12:8000,web3=10.0.0.13:8000"
FILES = {"haproxy": "isowsgi.cfg", "caddy": "Caddyfile", "nginx": "balancer.conf", "traefik": "isowsgi.toml"}


def made(kind: str) -> str:
    """Return what is made for a kind of balancer from the mounts; the folders that they name are there for as long."""
    text = re.sub(', venv = "[^"]*"', "", (DEPLOY / "hosts" / "isowsgi.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()) as out:
        for path in re.findall('"(/srv/[^"]+)"', text):
            Path(root + path).mkdir(parents=True, exist_ok=True)
        config = Path(root, "isowsgi.toml")
        config.write_text(text.replace('"/srv/', f'"{root}/srv/'), encoding="utf-8")
        main.main(["export", kind, str(config), "--servers", SERVERS, "--only", "/wiki=web1,web2"], "isowsgi", standalone_mode=False)
    return out.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    pages.add_option(parser)
    is_check = parser.parse_args().check
    sys.exit(max(pages.bring_up_to_date(DEPLOY / kind / name, made(kind), __file__, is_check) for kind, name in FILES.items()))
