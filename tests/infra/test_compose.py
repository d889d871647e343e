"""Verifies the compose file: references resolve, networks isolate the stores, and it contains no secret."""

from __future__ import annotations

import re

import pytest

from tests.infra.manifests import COMPOSE, SERVICES, compose, images, pinned, proto_services, settings_class

FILE = compose()
PARTS = FILE["services"]
# Keys of the Compose specification that the file uses, by section.
KNOWN = {
    "": {"name", "services", "networks", "volumes"},
    "service": {
        "build",
        "cap_drop",
        "command",
        "depends_on",
        "environment",
        "healthcheck",
        "image",
        "init",
        "mem_limit",
        "networks",
        "ports",
        "read_only",
        "restart",
        "security_opt",
        "stop_grace_period",
        "tmpfs",
        "volumes",
    },
    "healthcheck": {"test", "interval", "timeout", "retries", "start_period"},
    "build": {"context", "dockerfile", "args"},
    "network": {"internal"},
}


def test_file_uses_only_known_keys() -> None:
    assert {key for key in FILE if not key.startswith("x-")} == KNOWN[""]
    for part in PARTS.values():
        assert set(part) <= KNOWN["service"]
        assert set(part.get("healthcheck", {})) <= KNOWN["healthcheck"]
        assert set(part.get("build", {})) <= KNOWN["build"]
        assert all(isinstance(value, str) for value in part.get("environment", {}).values())
    for network in FILE["networks"].values():
        assert set(network) <= KNOWN["network"]


@pytest.mark.fault("helm")
def test_every_scalar_of_a_component_is_a_string_or_a_flag() -> None:
    """Verifies what Compose reads: an unquoted 1e3 or 0o17 would be a number, and a port 22:22 a time."""

    def check(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                check(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for inner in value:
                check(inner, path)
        else:
            numeric = path.endswith((".healthcheck.retries",))
            assert isinstance(value, int if numeric else str | bool), path

    check(PARTS, "services")


def test_file_has_all_components() -> None:
    assert set(PARTS) == {*SERVICES, "milvus", "minio", "collector", "jaeger"}


@pytest.mark.parametrize("name", PARTS)
def test_references_exist(name: str) -> None:
    part = PARTS[name]
    assert set(part["networks"]) <= set(FILE["networks"])
    for other, condition in part.get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in PARTS[other]
    for volume in part.get("volumes", []):
        source, target, *mode = volume.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (COMPOSE.parent / source).resolve().is_file()
            assert mode == ["ro"]
        else:
            assert source in FILE["volumes"]
    if "build" in part:
        context = (COMPOSE.parent / part["build"]["context"]).resolve()
        assert (context / part["build"]["dockerfile"]).is_file()
        assert part["build"]["args"] == {"SERVICE": name}


def test_images_are_pinned() -> None:
    found = list(images(FILE["services"]))
    assert len(found) == len(PARTS)
    assert [image for image in found if not pinned(image)] == []


def test_images_equal_those_of_the_chart(defaults: list[dict[str, object]]) -> None:
    assert set(images(FILE["services"])) == set(images(defaults))


def test_addresses_name_services_on_a_common_network() -> None:
    default_ports = {name: settings_class(name).model_fields["port"].default for name in SERVICES}
    open_ports = {**default_ports, "milvus": 19530, "minio": 9000, "collector": 4317, "jaeger": 4317}
    seen = 0
    for part in PARTS.values():
        for variable, value in part.get("environment", {}).items():
            address = re.fullmatch(r"(?:http://)?([a-z]+):(\d+)", value)
            if not address:
                continue
            other, port = address[1], int(address[2])
            assert open_ports[other] == port, variable
            assert set(part["networks"]) & set(PARTS[other]["networks"]), variable
            seen += 1
    # Three targets of the scheduler, one of the denoiser, two of the gateway, two stores, five to the
    # collector, one to Jaeger.
    assert seen == 14


def test_only_the_cache_reaches_the_stores() -> None:
    assert {name for name, part in PARTS.items() if "stores" in part["networks"]} == {
        "cache",
        "milvus",
        "minio",
    }
    for store in ("milvus", "minio"):
        assert PARTS[store]["networks"] == ["stores"]
    assert all(network == {"internal": True} for name, network in FILE["networks"].items() if name != "edge")


def test_ports_are_published_on_this_machine_only() -> None:
    published = {name: part["ports"] for name, part in PARTS.items() if "ports" in part}
    assert published == {
        "scheduler": ["127.0.0.1:7400:7400"],
        "gateway": ["127.0.0.1:7404:7404"],
        "jaeger": ["127.0.0.1:16686:16686"],
        "collector": ["127.0.0.1:8889:8889"],
    }


@pytest.mark.parametrize("service", SERVICES)
def test_services_have_no_privileges_and_a_healthcheck(service: str) -> None:
    part = PARTS[service]
    assert part["read_only"] is True
    assert part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    command, program, port, name = part["healthcheck"]["test"]
    assert (command, program) == ("CMD", "healthy")
    assert port == part["environment"][f"CHORUS_{service.upper()}_PORT"]
    if service == "gateway":
        assert name == "/health"
    else:
        assert name == f"chorus.{service}.v1.{service.title()}Service"
        assert name in proto_services()
    fields = settings_class(service).model_fields
    drain = float(
        part["environment"].get(f"CHORUS_{service.upper()}_DRAIN_SECONDS", fields["drain_seconds"].default)
    )
    assert float(part["stop_grace_period"].removesuffix("s")) >= drain + 5
    for variable, value in part["environment"].items():
        if variable.endswith(("_DIR", "_DATABASE")):
            mounts = [volume.split(":")[1] for volume in part["volumes"]]
            assert any(value.startswith(f"{mount}/") for mount in mounts)


def test_secrets_come_from_the_environment() -> None:
    example = (COMPOSE.parent / ".env.example").read_text()
    variables = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    assert all(value == "" for value in variables.values())
    used = set(re.findall(r"\$\{(\w+)(?::[?-][^}]*)?\}", COMPOSE.read_text()))
    assert used == set(variables)
    for part in PARTS.values():
        for name, value in part.get("environment", {}).items():
            if name.endswith(("_KEY", "_TOKEN", "_USER", "_PASSWORD", "_SECRET")):
                assert re.fullmatch(r"\$\{\w+(:\?[^}]+|:-)\}", value), name


def test_env_file_is_ignored_by_git() -> None:
    assert ".env" in (COMPOSE.parent / ".gitignore").read_text().split()
