"""deploy/kubernetes: what the manifests say is what Kubernetes takes, and a pod's container serves and follows its ConfigMap.

A container is a server of another user here, on folders laid out as the kubelet lays them out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import APPS, ROOT, Server, eventually, running_server

MANIFESTS = ROOT / "deploy" / "kubernetes"
KUBECTL = shutil.which("kubectl")

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run as another user")

# A user that /etc/passwd does not know.
UID = 10001


def rendered(folder: str) -> list[dict[str, Any]]:
    text = subprocess.run(["kubectl", "kustomize", str(MANIFESTS / folder)], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def of_kind(items: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in items if item["kind"] == kind]


@needs_kubectl
@pytest.mark.parametrize("folder", ["base", "groups", "threads"])
def test_what_belongs_together_has_the_same_names_and_times(folder: str) -> None:
    items = rendered(folder)
    for deployment in of_kind(items, "Deployment"):
        pod = deployment["spec"]["template"]
        container = pod["spec"]["containers"][0]
        selected = [item for item in of_kind(items, "Service") if item["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        assert len(selected) == 1
        assert selected[0]["spec"]["ports"][0]["targetPort"] in [port["name"] for port in container["ports"]]
        config = next(volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume)
        data = next(item["data"] for item in of_kind(items, "ConfigMap") if item["metadata"]["name"] == config)
        lame_duck = int(re.findall(r"lame_duck = (\d+)", data["isowsgi.toml"])[0])
        grace = int(re.findall(r"graceful_timeout = (\d+)", data["gunicorn.conf.py"])[0])
        assert lame_duck < grace < pod["spec"]["terminationGracePeriodSeconds"]
        # Out of the Service before the listeners close.
        probe = container["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] < lame_duck
        # One that scales it, by what it requests, and nobody who sets the number back.
        scaled = [item["spec"] for item in of_kind(items, "HorizontalPodAutoscaler")]
        assert [spec["scaleTargetRef"]["name"] for spec in scaled].count(deployment["metadata"]["name"]) == 1
        assert "replicas" not in deployment["spec"]
        assert "cpu" in container["resources"]["requests"]


@needs_kubectl
def test_a_mount_that_cannot_be_loaded_has_no_pod_restarted() -> None:
    """A probe that fails restarts the pod, but the one for readiness."""
    [deployment] = of_kind(rendered("base"), "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]

    paths = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}

    assert paths == {"startupProbe": "/-/isowsgi/live", "livenessProbe": "/-/isowsgi/live", "readinessProbe": "/-/isowsgi/ready"}


@needs_kubectl
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_pods_are_scaled_by_the_busiest_mount_of_each(tmp_path: Path) -> None:
    """The adapter fills in what a HorizontalPodAutoscaler asks for.

    The scrape itself is a request that is being served: with one thread for each mount, the status page was the busiest one for ever.
    """
    [rule] = yaml.safe_load((MANIFESTS / "threads" / "adapter.yaml").read_text())["rules"]["custom"]
    [scaler] = of_kind(rendered("threads"), "HorizontalPodAutoscaler")
    assert rule["name"]["as"] in [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"] if "pods" in metric]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="apps",pod=~"a|b"')
    busy = {("a", "/x"): (1, 4), ("a", "/y"): (3, 4), ("a", "/asleep"): (0, 0), ("b", "/x"): (2, 8), ("c", "/x"): (4, 4)}
    busy |= {("a", "/-/isowsgi"): (1, 1), ("b", "host.example/-/isowsgi"): (1, 1)}
    names = ("isowsgi_requests_in_flight", "isowsgi_threads")
    series = [
        {"series": f'{name}{{namespace="apps",pod="{pod}",mount="{mount}"}}', "values": str(value)}
        for (pod, mount), values in busy.items()
        for name, value in zip(names, values, strict=True)
    ]
    expected = [{"labels": f'{{pod="{pod}"}}', "value": share} for pod, share in (("a", 0.75), ("b", 0.25))]
    asked = {"expr": query, "eval_time": "0s", "exp_samples": expected}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}]}))

    tried = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert tried.returncode == 0, tried.stdout + tried.stderr


@needs_kubectl
def test_a_pod_is_restricted_as_the_standard_says() -> None:
    """The Pod Security Standards' level "restricted"."""
    [deployment] = of_kind(rendered("base"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    for container in pod["containers"]:
        context = {**pod["securityContext"], **container["securityContext"]}
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["readOnlyRootFilesystem"] is True
    assert all({"configMap", "secret", "emptyDir"} & volume.keys() for volume in pod["volumes"])


def test_the_rules_of_prometheus_are_those_of_the_other_deployments() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "prometheusrule.py"), "--check"]

    assert subprocess.run(tool, capture_output=True, check=False).returncode == 0


def test_a_pod_has_the_settings_and_the_places_of_the_image() -> None:
    """kustomize reads no file outside of its folder, so gunicorn's settings are there twice."""
    image = ROOT / "deploy" / "container"
    assert (MANIFESTS / "base" / "gunicorn.conf.py").read_text() == (image / "gunicorn.conf.py").read_text()

    deployment = yaml.safe_load((MANIFESTS / "base" / "deployment.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    built = (image / "Containerfile").read_text()
    for variable in container["env"]:
        assert f"{variable['name']}={variable['value']} " in built.replace("\\\n", " ")
    [port] = container["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in built
    assert json.dumps(container["args"][0]) in built.splitlines()[-1]


class ConfigMap:
    """A volume as the kubelet lays it out: files are links into a folder that a link names, and a change switches that link."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder
        self._version = 0
        folder.mkdir()
        self.put(files)
        for name in files:
            (folder / name).symlink_to(f"..data/{name}")

    def put(self, files: dict[str, str]) -> None:
        self._version += 1
        version = self.folder / f"..version_{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
        (self.folder / "..data_tmp").symlink_to(version.name)
        os.rename(self.folder / "..data_tmp", self.folder / "..data")


USER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]


def can_serve() -> bool:
    """Whether that user can execute this Python and read this checkout; setpriv itself can what root can, so a process of its own tries."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import gunicorn, isowsgi'], check=True)"
    return subprocess.run([*USER, sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.fixture
def pod() -> Iterator[tuple[Server, ConfigMap, dict[str, str]]]:
    """Run what the manifests say, with a root of the container that is this machine's."""
    if not can_serve():
        pytest.skip(f"user {UID} may not execute this Python, or read this checkout")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with container(Path(folder)) as (server, config, files):
            yield server, config, files


@contextmanager
def container(tmp_path: Path) -> Iterator[tuple[Server, ConfigMap, dict[str, str]]]:
    for name in ("run", "tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    files = {name: (MANIFESTS / "base" / name).read_text() for name in ("isowsgi.toml", "gunicorn.conf.py")}
    moved = {
        "/etc/isowsgi/": f"{tmp_path}/config/",
        "/run/isowsgi": str(tmp_path / "run"),
        "lame_duck = 10": "lame_duck = 0.1",
        "blog:create_app()": "hello",
        "shop.wsgi:application": "hello",
        "/srv/blog": str(APPS),
        "/srv/shop": str(APPS),
        ', env_file = "/etc/isowsgi-secret/shop.env"': "",
        '"0.0.0.0:8000"': '"127.0.0.1:0"',
        'errorlog = "-"': f'errorlog = "{tmp_path}/tmp/error.log"',
    }
    for old, new in moved.items():
        assert any(old in text for text in files.values()), old
        files = {name: text.replace(old, new) for name, text in files.items()}
    config = ConfigMap(tmp_path / "config", files)
    options = {"HOME": str(tmp_path / "run"), "ISOWSGI_CACHE_DIR": str(tmp_path / "run" / "cache")}
    with running_server(
        tmp_path / "tmp", "", "-c", str(config.folder / "gunicorn.conf.py"), app=None, bind=None, env=options, launcher=USER, wait_for=0
    ) as server:
        server.log_path.unlink(missing_ok=True)
        server.wait_until_serving(3)
        yield server, config, files


@needs_root
def test_a_changed_configmap_is_taken_up_by_the_pod_that_runs(pod: tuple[Server, ConfigMap, dict[str, str]]) -> None:
    server, config, files = pod
    assert [server.get(path).status_code for path in ("/blog/", "/shop/", "/new/")] == [200, 200, 404]
    eventually(lambda: server.get("/-/isowsgi/ready").status_code == 200, "the probe")

    changed = files["isowsgi.toml"].replace("[mounts]\n", f'[mounts]\n"/new" = {{ app = "hello", pythonpath = ["{APPS}"] }}\n')
    config.put({**files, "isowsgi.toml": changed})

    eventually(lambda: server.get("/new/").status_code == 200, "the new mount")
    generations = {mount["pattern"]: mount["generation"] for mount in json.loads(server.get("/-/isowsgi/status.json").text)["mounts"]}
    assert generations["/blog"] == 1
