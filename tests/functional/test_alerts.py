"""The alert rules that are shipped, in a real Prometheus: it asks a real server, and the alert of an app that fails fires."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isowsgi.shared.interpreters import best_isolation
from tests.conftest import DEADLINE_S, ROOT, Server, StartServer, eventually, whole_only
from tests.functional.test_errors import FLASK, ask

PROMETHEUS = shutil.which("prometheus")

pytestmark = [
    whole_only("asks a server for seconds; tests/test_metrics.py has promtool judge the rules"),
    pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus, of Debian's package of that name"),
]

CONFIG = f"""
    [defaults]
    isolation = "{best_isolation()}"
    [mounts]
    "/shop" = "flask_site:app"
    "/quiet" = "hello"
    "/-/isowsgi" = "isowsgi.status"
"""

# It asks far more often than one does, so that the test need not wait; the rules look at the last five minutes all the same.
ASKS = """
global: {{scrape_interval: 1s, evaluation_interval: 250ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: isowsgi
    metrics_path: /-/isowsgi/metrics
    static_configs: [{{targets: ["{target}"]}}]
"""


@contextmanager
def prometheus(folder: Path, server: Server) -> Iterator[str]:
    """Run Prometheus with the shipped rules; the block has its address."""
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(ASKS.format(rules=ROOT / "deploy/prometheus/alerts.yml", target=f"127.0.0.1:{server.port}"))
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=debug",
    ]
    with log.open("w") as written, subprocess.Popen([str(PROMETHEUS), *arguments], stdout=written, stderr=written) as running:
        try:
            told = eventually(lambda: re.search(r'msg="Listening on" address=(127\.0\.0\.1:[1-9]\d*)', log.read_text()), "its port")
            yield told[1]
        finally:
            running.kill()


def asked(address: str, path: str) -> dict[str, Any]:
    """Return what Prometheus answers; nothing while it begins."""
    client = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        client.request("GET", path)
        answer = client.getresponse()
        return dict(json.load(answer)["data"]) if answer.status == 200 else {}
    finally:
        client.close()


def test_the_alert_of_an_app_that_fails_fires_and_names_it(serve: StartServer, tmp_path: Path) -> None:
    server = serve(CONFIG, files={"flask_site.py": FLASK}, wait_for=3)
    ask(server, "/shop/key", 2)
    with prometheus(tmp_path, server) as address:
        eventually(lambda: asked(address, "/api/v1/query?query=isowsgi_errors_total").get("result"), "a first look at the errors")
        ask(server, "/shop/key", 100)
        ask(server, "/quiet/", 100, 200)

        def firing() -> list[tuple[str, str, str]]:
            alerts = [each["labels"] for each in asked(address, "/api/v1/alerts").get("alerts", ()) if each["state"] == "firing"]
            return [(each["alertname"], each.get("mount", ""), each.get("type", "")) for each in alerts]

        assert eventually(firing, "an alert") == [("IsowsgiMountErrors", "/shop", "KeyError")]
