"""Render deploy/kubernetes, and check each resource against the schemas of the three newest versions of Kubernetes.

What others define (an HTTPRoute, a ServiceMonitor) has no schema there and is only named. Needs kubectl.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-not-found,unused-ignore] # in the environment of `make manifests` only
import yaml

MANIFESTS = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes"
FOLDERS = ("base", "groups", "threads", "monitoring")
VERSIONS = 3

# Groups of Kubernetes' own: these have schemas.
OWN = ("v1", "apps/", "autoscaling/", "policy/", "networking.k8s.io/")


def newest() -> list[str]:
    major, minor, *_ = kubernetes_validate.latest_version().split(".")
    return [f"{major}.{int(minor) - age}" for age in range(VERSIONS)]


def rendered(folder: str) -> list[dict[str, Any]]:
    shown = subprocess.run(["kubectl", "kustomize", str(MANIFESTS / folder)], capture_output=True, text=True, check=False)
    if shown.returncode:
        sys.exit(f"deploy/kubernetes/{folder}: {shown.stderr.strip()}")
    return list(yaml.safe_load_all(shown.stdout))


def faults(folder: str, version: str) -> Iterator[str]:
    for resource in rendered(folder):
        name = f"deploy/kubernetes/{folder}: {resource['kind']} {resource['metadata']['name']}"
        if not resource["apiVersion"].startswith(OWN):
            continue
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            yield f"{name}, Kubernetes {version}: {'.'.join(map(str, exc.path))}: {exc.message}"


def main() -> int:
    found = [fault for version in newest() for folder in FOLDERS for fault in faults(folder, version)]
    print("\n".join(found) or f"deploy/kubernetes fits Kubernetes {', '.join(newest())}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
