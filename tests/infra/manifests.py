"""Reads the rendered chart and the compose file as a cluster or a Docker engine would."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.runtime.settings import ServerSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "infra/helm/chorus"
COMPOSE = ROOT / "infra/compose/compose.yaml"
MODULES = ROOT / "infra/tools/node_modules"
GRPC_SERVICES = ("scheduler", "embedder", "cache", "denoiser")
SERVICES = (*GRPC_SERVICES, "gateway")
BUNDLED = ("milvus", "minio", "collector", "jaeger")
# The oldest version that the chart supports, and the newest one with a schema.
KUBERNETES = ("1.27", "1.37")

Manifest = dict[str, Any]
Values = Mapping[str, Any]

_PEERS = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
# Values of the installations that the tests render.
INSTALLATIONS: dict[str, Values] = {
    "defaults": {},
    "external stores": {
        "milvus": {
            "enabled": False,
            "external": {
                "uri": "https://milvus.example:19531",
                "existingSecret": "milvus-token",
                "peers": _PEERS,
            },
        },
        "minio": {"enabled": False},
        "objectStore": {
            "bucket": "latents",
            "region": "eu-west-1",
            "external": {"endpoint": "s3.example", "secure": True, "peers": _PEERS},
        },
        "collector": {"enabled": False},
        "telemetry": {"endpoint": "http://otlp.example:4317", "sampleRatio": 0.25, "peers": _PEERS},
    },
    "own trace store": {
        "jaeger": {"enabled": False},
        "collector": {"endpoint": "https://traces.example:443", "peers": _PEERS},
        "telemetry": {"metrics": True},
        "metrics": {"enabled": True, "port": 9100, "scrapers": [{"podSelector": {}}]},
    },
    "blobs in a directory, no telemetry": {
        "cache": {"blobs": "directory", "settings": {"max_entry_bytes": 268435456, "grace_seconds": 0.5}},
        "telemetry": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "GPUs": {
        "image": {
            "repository": "registry.example:5000/team/chorus",
            "tag": "0.1.0-cuda",
            "pullSecrets": ["pull"],
        },
        "scheduler": {
            "service": {"type": "LoadBalancer", "annotations": {"example/internal": "true"}},
            "persistence": {"existingClaim": "jobs"},
            "settings": {"log_level": "debug"},
            "apiKeys": {"existingSecret": "api-keys"},
        },
        "cache": {"keys": {"existingSecret": "cache-keys"}},
        "embedder": {
            "weights": {"existingClaim": "encoders"},
            "settings": {"conditioning": "minilm,umt5:/weights/umt5"},
        },
        "denoiser": {
            "replicas": 3,
            "gpu": {"enabled": True, "runtimeClassName": "nvidia"},
            "weights": {"existingClaim": "models"},
            "settings": {"models": "/weights/wan/model.toml", "startup_seconds": 1800, "drain_seconds": 90.5},
            "nodeSelector": {"accelerator": "h200"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "podAnnotations": {"example/team": "video"},
        },
        "jaeger": {"clients": [{"podSelector": {}}]},
    },
}


class ClusterLoader(yaml.SafeLoader):
    """Reads plain scalars as Kubernetes does, for which 1e3 and 0o17 are numbers, too."""


ClusterLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
ClusterLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])


def load_manifests(text: str) -> list[Manifest]:
    return [found for found in yaml.load_all(text, ClusterLoader) if found]


def find_tool(path: str) -> Path:
    tool = MODULES / path
    if not tool.is_file():
        pytest.fail(f"{tool.relative_to(ROOT)} is missing: run `make tools`", pytrace=False)
    return tool


@dataclass(frozen=True)
class Chart:
    """Runs Helm with the chart."""

    helm: Path
    directory: Path

    def run(self, verb: str, values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
        file = self.directory / "values.yaml"
        # Unlike PyYAML's output, every string of a JSON file is a string to every parser of YAML.
        file.write_text(json.dumps(values, ensure_ascii=False))
        command = [str(self.helm), *verb.split(), str(CHART), "--values", str(file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def template(self, values: Values, release: str = "demo", version: str = "1.33") -> list[Manifest]:
        names = ("--name-template", release, "--namespace", "video")
        done = self.run("template", values, *names, "--kube-version", f"{version}.0")
        assert done.returncode == 0, done.stderr
        return load_manifests(done.stdout)

    def template_valid(self, values: Values, version: str, release: str = "demo") -> list[Manifest]:
        """Renders the chart for a version of Kubernetes, and validates every manifest against its schemas."""
        manifests = self.template(values, release, version)
        for found in manifests:
            kubernetes_validate.validate(found, version, strict=True)
        return manifests

    def render_invalid(self, values: Values) -> str:
        """Returns the error of Helm for values that the chart must reject."""
        done = self.run("template", values, "--kube-version", "1.33.0")
        assert done.returncode != 0, "these values were accepted"
        return done.stderr


def component(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def select_kinds(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    """Selects manifests of these kinds, by component."""
    return {component(found): found for found in manifests if found["kind"] in kinds}


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return select_kinds(manifests, "Deployment", "StatefulSet")


def pod_spec(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> Manifest:
    (only,) = pod_spec(workload)["containers"]
    return dict(only)


def environment(workload: Manifest) -> dict[str, str]:
    """Returns the variables of a container. Those from secrets or the pod have placeholders, which differ."""
    entries = container(workload).get("env", [])
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), f"a variable is set twice: {names}"
    return {entry["name"]: entry.get("value", f"placeholder-{entry['name']}") for entry in entries}


def ports(workload: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def settings_class(service: str) -> type[ServerSettings]:
    """Finds the settings class of a service by its prefix."""
    module = import_module(f"services.{service}.settings")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ServerSettings)
        and value.model_config.get("env_prefix") == f"CHORUS_{service.upper()}_"
    )
    return found


def compose() -> Manifest:
    [loaded] = load_manifests(COMPOSE.read_text())
    return loaded


def images(value: object) -> Iterator[str]:
    """Yields every `image:` in a nested value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "image" and isinstance(inner, str):
                yield inner
            else:
                yield from images(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from images(inner)


def pinned(image: str) -> bool:
    """Returns whether an image's tag names one version."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return re.fullmatch(r"(v|RELEASE\.)?\d[\w.-]*\d[\w.-]*", tag) is not None


def proto_services() -> set[str]:
    """Returns the full names of the gRPC services in the contract."""
    names = set()
    for file in (ROOT / "proto/chorus").rglob("*.proto"):
        text = file.read_text()
        for package in re.findall(r"^package ([\w.]+);", text, re.MULTILINE):
            names |= {f"{package}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    return names
