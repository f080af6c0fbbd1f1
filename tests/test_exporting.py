"""Configurations for balancers lead each request where isowsgi's own routing does."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi import configuration
from isowsgi.configuration import Config, Mount
from isowsgi.configuration.values import NO_APP
from isowsgi.exporting import caddy, haproxy, kubernetes, nginx, regexes, traefik
from isowsgi.exporting.backends import (
    Address,
    Balanced,
    CannotExport,
    Server,
    addresses,
    backends,
    balanced,
    by_host,
    check_of,
    places,
    ready_target,
)
from isowsgi.shared.routing import Route, Router, bare_host
from tests import balancers
from tests.command import call
from tests.conftest import ROOT, examples

APP = "wsgiref.simple_server:demo_app"

SERVERS = [Server("web1", "10.0.0.1:8000"), Server("web2", "[::1]:8000")]

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


def is_at(pattern: str, name: str) -> bool:
    return fits(Address(pattern, "", ""), name, "/")


@given(st.lists(st.tuples(HOSTS, PREFIXES), min_size=1, max_size=8, unique=True), HOSTS, PREFIXES)
@examples(300)
def test_the_first_address_that_fits_is_that_of_the_mount(table: list[tuple[str, str]], host: str, path: str) -> None:
    """In the list of all; in that of the places, which are fewer; and in the list of the most specific host that fits."""
    host, path = host.replace("*", "c"), path or "/"
    mounts = [Mount(number=n, pattern=h + p, host=h, prefix=p, app=NO_APP) for n, (h, p) in enumerate(table)]
    router = Router(Route(n, h, p) for n, (h, p) in enumerate(table))
    found = backends(mounts)

    first = next((address.backend for address in addresses(found) if fits(address, host, path)), None)
    placed = next(
        (place.backend for place in places(found) if any(fits(Address(h, place.prefix, ""), host, path) for h in place.hosts or ("",))),
        None,
    )
    tables = by_host(found)
    narrowest = min((each for each in tables if is_at(each, host)), key=lambda each: (not each, each.startswith("*.")))
    looked_up = next((address.backend for address in tables[narrowest] if fits(Address("", address.prefix, ""), host, path)), None)

    mount = router.match(host, path)
    assert first == placed == looked_up == (None if mount is None else found[mount].name)


def test_each_backend_has_a_name_of_its_own(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'"/" = "{APP}"\n"/a-b" = "{APP}"\n"/a/b" = "{APP}"\n"*.a.example/" = "{APP}"\n"/ä" = "{APP}"')

    assert [backend.name for backend in backends(config.mounts)] == ["root", "a-b", "a-b-2", "any-a-example", "root-2"]


def test_no_mount_s_backend_is_the_one_that_answers_404(tmp_path: Path) -> None:
    """The name is HAProxy's own for what no mount has."""
    config = loaded(tmp_path, f'"/isowsgi/nowhere" = "{APP}"\n"/-" = "isowsgi.status:application"')

    text = haproxy.configuration(balanced(config, SERVERS, {}, 2.0, ":80"))

    assert text.count("\nbackend isowsgi-nowhere\n") == 1
    assert "\nbackend isowsgi-nowhere-2  # /isowsgi/nowhere\n" in text
    assert "use_backend isowsgi-nowhere-2 if { var(txn.path) -m str -- '/isowsgi/nowhere' }" in text


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

    text = haproxy.configuration(balanced(config, SERVERS, {}, 2.0, ":80"))
    listed = kubernetes.routes(config, "httproute", "site", 80, {}, "gate")["items"]

    assert "use_backend isowsgi-nowhere if { var(txn.path) -m beg -- '/-/' }" in text
    assert text.index("use_backend isowsgi-nowhere") < text.index("use_backend root")
    rules = {item["metadata"]["annotations"]["isowsgi/mount"]: item["spec"]["rules"][0] for item in listed}
    assert "backendRefs" in rules["/"]
    assert "backendRefs" not in rules["/-"]


def test_a_route_of_kubernetes_has_the_hosts_path_and_service_of_its_mount(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'"shop.example.com/ä" = {{ app = "{APP}", hosts = ["*.example.org"] }}\n"/" = "{APP}"')

    routes = kubernetes.routes(config, "httproute", "site", 80, {"/": "other"}, "gate")["items"]
    ingresses = kubernetes.routes(config, "ingress", "site", 80, {}, None)["items"]

    assert routes[0]["spec"]["hostnames"] == ["shop.example.com", "*.example.org"]
    assert routes[0]["spec"]["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/%C3%A4"}}]
    assert [route["spec"]["rules"][0]["backendRefs"][0]["name"] for route in routes] == ["site", "other", "other"]
    assert [rule["host"] for rule in ingresses[0]["spec"]["rules"]] == ["shop.example.com", "*.example.org"]
    assert ingresses[1]["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/"
    with pytest.raises(CannotExport, match="no mount '/x'"):
        kubernetes.routes(config, "ingress", "site", 80, {"/x": "other"}, None)
    with pytest.raises(CannotExport, match="--gateway"):
        kubernetes.routes(config, "httproute", "site", 80, {}, None)


def test_routes_of_kubernetes_have_labels_by_which_those_that_are_no_more_are_deleted(tmp_path: Path) -> None:
    """A mount with more hosts than a route may have is several, and what was applied without a label stays when they become fewer."""
    config = loaded(tmp_path, f'"/" = "{APP}"\n"/b" = "{APP}"')

    routes = kubernetes.routes(config, "httproute", "site", 80, {"/b": "other"}, "gate")["items"]
    ingresses = kubernetes.routes(config, "ingress", "site", 80, {"/b": "other"}, None)["items"]

    wanted = {"app.kubernetes.io/component": "routes", "app.kubernetes.io/instance": "site"}.items()
    assert [wanted <= item["metadata"]["labels"].items() for item in (*routes, *ingresses)] == [True] * 4


def test_a_route_of_kubernetes_is_also_made_for_hosts_that_others_have_paths_of(tmp_path: Path) -> None:
    """A proxy that looks up the host first finds no other path there than that host's own, and would answer 404."""
    hosts = [f"h{number}.example.org" for number in range(20)]
    config = loaded(
        tmp_path,
        f'"/" = "{APP}"\n"a.example.com/shop" = "{APP}"\n"*.example.com/" = "{APP}"\n"/-" = "isowsgi.status:application"\n'
        f'"/many" = {{ app = "{APP}", hosts = {hosts!r} }}',
    )

    listed = kubernetes.routes(config, "httproute", "site", 80, {}, "gate")["items"]
    ingresses = kubernetes.routes(config, "ingress", "site", 80, {}, None)["items"]

    found = {item["metadata"]["name"]: item["spec"].get("hostnames", [""]) for item in listed}
    assert found["isowsgi-any-example-com"] == ["*.example.com", "a.example.com"]
    assert found["isowsgi-root"] == [""]
    assert [*found["isowsgi-root.2"], *found["isowsgi-root.3"]] == sorted(hosts)
    assert [*found["isowsgi-h0-example-org-many"], *found["isowsgi-h0-example-org-many.2"]] == hosts
    assert max(map(len, found.values())) == 16
    assert len(found["isowsgi-root.2"]) == 16
    [root] = [item for item in ingresses if item["metadata"]["name"] == "isowsgi-root"]
    assert [rule.get("host", "") for rule in root["spec"]["rules"]] == [*sorted(hosts), ""]


@pytest.mark.parametrize("host", ["[::1]", "10.0.0.1", "under_score.example.com", "-x.example.com"])
def test_a_host_that_kubernetes_does_not_take_is_said(tmp_path: Path, host: str) -> None:
    config = loaded(tmp_path, f'"{host}/x" = "{APP}"')

    with pytest.raises(CannotExport, match=re.escape(f"{host}/x: Kubernetes routes by names of hosts as DNS has them")):
        kubernetes.routes(config, "ingress", "site", 80, {}, None)


def every_kind_of_mount(folder: Path) -> Config:
    """Mounts with each thing that a balancer has to know, and with characters that mean something in one of their files."""
    (folder / "site").mkdir()
    return loaded(
        folder,
        f'"/" = "{APP}"\n"/shop" = {{ app = "{APP}", static = {{ "/static" = "site" }} }}\n"/old" = {{ redirect = "/shop" }}\n'
        f'"b.example.com/caf\u00e9" = {{ app = "{APP}", hosts = ["*.example.org", "c.example.com", "[::1]"] }}\n'
        f'"*.t.example.com/" = {{ app = "{APP}", max_live = 3 }}\n"-f.example.com/-f" = "{APP}"\n"/-" = "isowsgi.status:application"\n'
        f'\'/{{x}}`"\\$y;\' = "{APP}"\n"/it\'s*(50%)+" = "{APP}"',
    )


def site_of(folder: Path) -> Balanced:
    return balanced(every_kind_of_mount(folder), SERVERS, {"/shop/static": ["web2"]}, 2.0, ":80")


MADE = {"haproxy": haproxy.configuration, "caddy": caddy.configuration, "nginx": nginx.configuration}


@pytest.mark.parametrize("kind", balancers.KINDS)
def test_the_program_itself_takes_what_is_made_for_it(tmp_path: Path, kind: str) -> None:
    site = site_of(tmp_path)._replace(bind="8080" if kind == "nginx" else ":8080")

    balancers.check(kind, balancers.written(kind, tmp_path, MADE[kind](site)))


@pytest.mark.parametrize("kind", [*MADE, "traefik"])
def test_no_mount_is_left_out(tmp_path: Path, kind: str) -> None:
    site = site_of(tmp_path)

    text = {**MADE, "traefik": traefik.configuration}[kind](site)

    for backend in site.served:
        assert re.search(rf"\b{backend.name}\b", text), backend
    assert text.count("[::1]:8000") == text.count("10.0.0.1:8000") + 1


def test_a_mount_may_be_on_some_servers_only(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    page = "isowsgi.status:application"
    config = loaded(tmp_path, f'"/" = "{APP}"\n"/x" = {{ app = "{APP}", static = {{ "/static" = "site" }} }}\n"/-" = "{page}"')

    site = balanced(config, SERVERS, {"/x": ["web2"]}, 2.0, ":80")

    assert {backend.pattern: [server.name for server in site.servers_of(backend)] for backend in site.served} == {
        "/": ["web1", "web2"],
        "/x": ["web2"],
        "/x/static": ["web2"],
    }
    with pytest.raises(CannotExport, match="no mount '/y'"):
        balanced(config, SERVERS, {"/y": ["web2"]}, 2.0, ":80")
    with pytest.raises(CannotExport, match="no server 'web3'"):
        balanced(config, SERVERS, {"/x": ["web3"]}, 2.0, ":80")


# What Traefik's documentation of the file provider (version 3) has for what is made here.
ROUTER = {"entryPoints", "rule", "service", "priority", "middlewares"}
BALANCER = {"servers", "healthCheck", "serversTransport"}
HEALTH_CHECK = {"path", "hostname", "interval", "timeout", "followRedirects"}


def test_a_file_for_traefik_has_its_words_and_names_what_there_is(tmp_path: Path) -> None:
    http = traefik.tables(site_of(tmp_path)._replace(bind="web,other"))["http"]

    assert http.keys() == {"routers", "services", "middlewares", "serversTransports"}
    for router in http["routers"].values():
        assert router.keys() == ROUTER
        assert router["service"] in http["services"]
        assert set(router["middlewares"]) <= http["middlewares"].keys()
        assert router["entryPoints"] == ["web", "other"]
    for service in http["services"].values():
        assert service["loadBalancer"].keys() == BALANCER
        assert service["loadBalancer"]["healthCheck"].keys() == HEALTH_CHECK
        assert service["loadBalancer"]["serversTransport"] in http["serversTransports"]
    priorities = [router["priority"] for router in http["routers"].values()]
    assert priorities == sorted(set(priorities), reverse=True)
    assert min(priorities) > 0, "0 is the length of the rule"


PATTERN_CHARS = "abz/.-_~%+*()[]{}$^|`'\"&;,:@=!\\\u00e9\u4e2d"


@given(st.text(PATTERN_CHARS, min_size=1, max_size=6), st.text(PATTERN_CHARS, max_size=6))
@examples(300)
def test_an_expression_takes_the_paths_of_its_mount_and_no_others(name: str, path: str) -> None:
    prefix = "/" + name
    for expression, shown in ((regexes.of_prefix(prefix), str), (regexes.of_prefix(prefix, is_encoded=True), reserved_encoded)):
        is_python = re.compile(
            re.sub(r"\\x\{([0-9a-f]+)\}", lambda match: re.escape(chr(int(match[1], 16))), expression).replace("|$", r"|\Z")
        )
        assert is_python.match(shown(prefix))
        assert is_python.match(shown(f"{prefix}/{path}"))
        assert bool(is_python.match(shown("/" + path))) == f"/{path}/".startswith(f"{prefix}/")


def reserved_encoded(path: str) -> str:
    """Return a path as newer releases of Traefik look at it, if its client has encoded all that it can."""
    return "".join(quote(char, safe="") if char in ":/?#[]@!$&'()*+,;=%" else char for char in path)


def test_the_files_in_deploy_are_made_from_the_mounts_beside_them() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "balancers.py"), "--check"]

    tried = subprocess.run(tool, capture_output=True, text=True, check=False)

    assert tried.returncode == 0, tried.stderr


SHIPPED = {"haproxy": "isowsgi.cfg", "caddy": "Caddyfile", "nginx": "balancer.conf"}


@pytest.mark.parametrize("kind", balancers.KINDS)
def test_the_program_itself_takes_the_file_in_deploy(tmp_path: Path, kind: str) -> None:
    text = (ROOT / "deploy" / kind / SHIPPED[kind]).read_text(encoding="utf-8")
    if kind == "haproxy":
        main = (ROOT / "deploy/haproxy/haproxy.cfg").read_text(encoding="utf-8")
        path = tmp_path / "haproxy.cfg"
        path.write_text(re.sub("(?m)^    (user|group|stats socket|log /dev/log) .*\n", "", main) + text, encoding="utf-8")
    else:
        # nginx opens its sockets for a test, and only root may open this one.
        path = balancers.written(kind, tmp_path, text.replace("listen 80", "listen 8080"))
    balancers.check(kind, path)


def test_the_times_of_hosts_and_balancers_fit() -> None:
    conf: dict[str, object] = {}
    exec((ROOT / "deploy/hosts/gunicorn.conf.py").read_text(), conf)
    mounts = tomllib.loads((ROOT / "deploy/hosts/isowsgi.toml").read_text())
    balancers_text = "".join((ROOT / "deploy" / kind / name).read_text() for kind, name in {**SHIPPED, "traefik": "isowsgi.toml"}.items())

    idle = [int(text) for text in re.findall(r"(?:\tkeepalive|keepalive_timeout|idleConnTimeout =) \"?(\d+)s", balancers_text)]
    [(interval_ms, fall)] = set(re.findall(r"inter (\d+)ms fall (\d+)", balancers_text))
    assert len(idle) == 2 + balancers_text.count("keepalive_timeout")
    assert int(str(conf["keepalive"])) > max(idle), "the balancer must be the one who closes an idle connection"
    assert int(interval_ms) / 1000 * int(fall) < mounts["worker"]["lame_duck"] < int(str(conf["graceful_timeout"]))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--bind", "80;}"], "as nginx' `listen` has it"),
        (["--only", "/=web9"], "no server 'web9'"),
        (["--only", "web1"], "expected PATTERN=NAME"),
        (["--servers", "a=h:1,a=i:1"], "same name"),
        (["--servers", "h"], "HOST:PORT"),
    ],
)
def test_what_no_file_could_say_is_refused(tmp_path: Path, options: list[str], fault: str) -> None:
    (tmp_path / "isowsgi.toml").write_text(f'[mounts]\n"/" = "{APP}"\n"/-" = "isowsgi.status:application"')

    tried = call(tmp_path, "export", "nginx", "--servers", "web1=h:1", *options)

    assert tried.returncode == 2
    assert fault in tried.stderr
