"""Configurations for balancers lead each request where isowsgi's own routing does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi import configuration
from isowsgi.configuration import Config, Mount
from isowsgi.configuration.values import NO_APP
from isowsgi.exporting import haproxy, kubernetes
from isowsgi.exporting.backends import Address, CannotExport, addresses, backends, check_of, ready_target
from isowsgi.shared.routing import Route, Router, bare_host
from tests.conftest import examples

APP = "wsgiref.simple_server:demo_app"

HOSTS = st.sampled_from(["", "", "a.example.com", "b.example.com", "*.example.com", "example.com"])
PREFIXES = st.lists(st.sampled_from(["x", "y", "xy"]), max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts))


def loaded(folder: Path, mounts: str) -> Config:
    file = folder / "isowsgi.toml"
    file.write_text(f"[mounts]\n{mounts}", encoding="utf-8")
    return configuration.load(file)


def fits(address: Address, host: str, path: str) -> bool:
    """Say whether a request is at an address, as HAProxy's conditions do one by one."""
    name = bare_host(host)
    if address.host.startswith("*."):
        label, _, domain = name.partition(".")
        is_host = bool(label) and domain == address.host[2:]
    else:
        is_host = address.host in ("", name)
    return is_host and (not address.prefix or path == address.prefix or path.startswith(address.prefix + "/"))


@given(st.lists(st.tuples(HOSTS, PREFIXES), min_size=1, max_size=8, unique=True), HOSTS, PREFIXES)
@examples(300)
def test_the_first_address_that_fits_is_that_of_the_mount(table: list[tuple[str, str]], host: str, path: str) -> None:
    host, path = host.replace("*", "c"), path or "/"
    mounts = [Mount(number=n, pattern=h + p, host=h, prefix=p, app=NO_APP) for n, (h, p) in enumerate(table)]
    router = Router(Route(n, h, p) for n, (h, p) in enumerate(table))
    found = backends(mounts)

    first = next((address.backend for address in addresses(found) if fits(address, host, path)), None)

    mount = router.match(host, path)
    assert first == (None if mount is None else found[mount].name)


def test_each_backend_has_a_name_of_its_own(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'"/" = "{APP}"\n"/a-b" = "{APP}"\n"/a/b" = "{APP}"\n"*.a.example/" = "{APP}"\n"/ä" = "{APP}"')

    assert [backend.name for backend in backends(config.mounts)] == ["root", "a-b", "a-b-2", "any-a-example", "root-2"]


def test_a_server_is_asked_for_each_mount_by_its_status_page(tmp_path: Path) -> None:
    status = 'isowsgi.status:application"'
    check = check_of(loaded(tmp_path, f'"/" = "{APP}"\n"status.example.com/a b" = "{status}'.replace("a b", "ä")))

    assert check.host == "status.example.com"
    assert ready_target(check, "/ö&x") == "/%C3%A4/ready?mount=/%C3%B6%26x"
    with pytest.raises(CannotExport, match="no mount has the status page"):
        check_of(loaded(tmp_path, f'"/" = "{APP}"'))


def test_no_character_of_a_pattern_leaves_its_quotes() -> None:
    assert haproxy.quoted("/it's $x") == "'/it'\\''s $x'"


def test_strangers_get_no_status_page(tmp_path: Path) -> None:
    """Its server allows the balancer, who asks for whomever."""
    config = loaded(tmp_path, f'"/" = "{APP}"\n"/-" = "isowsgi.status:application"')

    text = haproxy.configuration(config, [haproxy.Server("web1", "10.0.0.1:8000")], 2.0, ":80")
    listed = kubernetes.routes(config, "httproute", "site", 80, {}, "gate")["items"]

    assert "http-request return status 404 if { var(txn.path) -m beg '/-/' }" in text
    assert text.index("return status 404") < text.index("use_backend root")
    rules = {item["metadata"]["annotations"]["isowsgi/mount"]: item["spec"]["rules"][0] for item in listed}
    assert "backendRefs" in rules["/"]
    assert "backendRefs" not in rules["/-"]


def test_a_route_of_kubernetes_has_the_hosts_path_and_service_of_its_mount(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'"shop.example.com/ä" = {{ app = "{APP}", hosts = ["*.example.org"] }}\n"/" = "{APP}"')

    routes = kubernetes.routes(config, "httproute", "site", 80, {"/": "other"}, "gate")["items"]
    ingresses = kubernetes.routes(config, "ingress", "site", 80, {}, None)["items"]

    assert routes[0]["spec"]["hostnames"] == ["shop.example.com", "*.example.org"]
    assert routes[0]["spec"]["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/%C3%A4"}}]
    assert [route["spec"]["rules"][0]["backendRefs"][0]["name"] for route in routes] == ["site", "other"]
    assert [rule["host"] for rule in ingresses[0]["spec"]["rules"]] == ["shop.example.com", "*.example.org"]
    assert ingresses[1]["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/"
    with pytest.raises(CannotExport, match="no mount '/x'"):
        kubernetes.routes(config, "ingress", "site", 80, {"/x": "other"}, None)
    with pytest.raises(CannotExport, match="--gateway"):
        kubernetes.routes(config, "httproute", "site", 80, {}, None)
