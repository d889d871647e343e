"""Verifies that values of the chart keep their type and reach every workload, on two Kubernetes versions."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.infra.manifests import (
    BUNDLED,
    CHART,
    KUBERNETES,
    ROOT,
    SERVICES,
    Chart,
    Manifest,
    container,
    environment,
    pod_spec,
    select_kinds,
    workloads,
)

pytestmark = pytest.mark.fault("helm")

COMPONENTS = (*SERVICES, *BUNDLED)
PEERS = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
# Texts that a YAML parser reads as something else unless they are quoted.
TEXTS = (
    "0123456",
    "1e3",
    "0x1F",
    "0o17",
    "1_000",
    "1.10",
    ".inf",
    "true",
    "yes",
    "null",
    "~",
    "",
    "12:30:45",
    "2026-11-25",
    "a: b",
    "# no comment",
    "{a: b}",
    "[a",
    "*a",
    "&a",
    "!a",
    "%a",
    "- a",
    "'",
    '"',
    "\\",
    " a ",
    "a\nb: c",
    "$(POD_NAME)",
    "{{ .Values }}",
    "é🔴",
)


@pytest.fixture(params=KUBERNETES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def every(values: dict[str, Any]) -> dict[str, Any]:
    """Returns values that set the same keys for every component."""
    return dict.fromkeys(COMPONENTS, values)


def find(manifests: list[Manifest], name: str) -> Manifest:
    """Returns the pod template of a component."""
    template: Manifest = workloads(manifests)[name]["spec"]["template"]
    return template


def test_numeric_looking_names_stay_strings(chart: Chart, version: str) -> None:
    values: dict[str, Any] = {
        "image": {"repository": "012", "tag": "1.10", "pullSecrets": ["123", "1e3"]},
        "serviceAccount": {"name": "0777", "annotations": {"0x1F": "0123456"}},
        "cache": {"persistence": {"storageClass": "1e3"}},
        "scheduler": {
            "persistence": {"existingClaim": "0123"},
            "service": {"annotations": {"1e3": "null"}},
            "settings": {"tenant": "0123456", "default_model": "1e3"},
        },
        "embedder": {"weights": {"existingClaim": "1e3"}, "settings": {"conditioning": "null"}},
        "denoiser": {
            "weights": {"existingClaim": "123"},
            "engines": {"existingClaim": "null"},
            "gpu": {"enabled": True, "runtimeClassName": "1e3"},
        },
        "milvus": {
            "enabled": False,
            "external": {"uri": "http://0123:80", "existingSecret": "1e3", "peers": PEERS},
        },
        "minio": {"enabled": False},
        "objectStore": {
            "existingSecret": "0123",
            "bucket": "0123456",
            "region": "1e3",
            "external": {"endpoint": "0123456", "peers": PEERS},
        },
        "collector": {"endpoint": "0123456", "peers": PEERS},
        "jaeger": {"enabled": False},
        "telemetry": {"sampleRatio": 1e-7},
    }
    manifests = chart.template_valid(values, version)
    cache, scheduler = (environment(workloads(manifests)[name]) for name in ("cache", "scheduler"))
    assert cache["CHORUS_CACHE_S3_BUCKET"] == cache["CHORUS_CACHE_S3_ENDPOINT"] == "0123456"
    assert cache["CHORUS_CACHE_S3_REGION"] == "1e3"
    assert scheduler["CHORUS_SCHEDULER_TENANT"] == "0123456"
    assert scheduler["CHORUS_SCHEDULER_DEFAULT_MODEL"] == "1e3"
    assert environment(workloads(manifests)["collector"])["TRACES_ENDPOINT"] == "0123456"
    secrets = [entry["valueFrom"]["secretKeyRef"] for entry in secret_entries(manifests)]
    assert {secret["name"] for secret in secrets} == {"0123", "1e3"}
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for name in SERVICES
        for volume in pod_spec(workloads(manifests)[name])["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert sorted(claims) == ["0123", "123", "1e3", "null"]
    assert pod_spec(workloads(manifests)["denoiser"])["runtimeClassName"] == "1e3"
    assert pod_spec(workloads(manifests)["cache"])["serviceAccountName"] == "0777"
    assert container(workloads(manifests)["cache"])["image"] == "012-cache:1.10"


def secret_entries(manifests: list[Manifest]) -> list[dict[str, Any]]:
    entries = container(workloads(manifests)["cache"])["env"]
    return [entry for entry in entries if "secretKeyRef" in entry.get("valueFrom", {})]


def test_every_text_reaches_environment_and_annotations(chart: Chart, version: str) -> None:
    texts = {f"TEXT_{number}": text for number, text in enumerate(TEXTS)}
    common = {"extraEnv": [{"name": k, "value": v} for k, v in texts.items()], "podAnnotations": texts}
    values = {**every(common), "scheduler": {**common, "service": {"annotations": texts}}}
    manifests = chart.template_valid(values, version)
    for name in COMPONENTS:
        assert texts.items() <= environment(workloads(manifests)[name]).items()
        assert texts.items() <= find(manifests, name)["metadata"]["annotations"].items()
    assert select_kinds(manifests, "Service")["scheduler"]["metadata"]["annotations"] == texts


def test_numeric_looking_labels_stay_strings(chart: Chart, version: str) -> None:
    texts = ("0123456", "1e3", "0x1F", "0o17", "true", "null", "yes", "1.10", "2026-11-25", "")
    labels = {f"label-{number}": text for number, text in enumerate(texts)}
    manifests = chart.template_valid(every({"podLabels": labels, "nodeSelector": labels}), version)
    for name in COMPONENTS:
        template = find(manifests, name)
        assert labels.items() <= template["metadata"]["labels"].items()
        assert template["spec"]["nodeSelector"] == labels


@pytest.mark.parametrize(
    "release", ["123", "1e3", "null", "my.release", "a" * 53, "chorus.2", "r" + "-1" * 26]
)
def test_names_are_valid_for_every_release(chart: Chart, version: str, release: str) -> None:
    manifests = chart.template_valid({}, version, release)
    names = [(found["kind"], found["metadata"]["name"]) for found in manifests]
    assert len(set(names)) == len(names)
    for kind, name in names:
        assert name[0].isalpha()
        assert "." not in name
        # Kubernetes puts the name of a StatefulSet with a hash of 10 characters into a label.
        assert len(name) + (11 if kind == "StatefulSet" else 0) <= 63
    for found in workloads(manifests).values():
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == release


def test_full_name_can_be_replaced(chart: Chart) -> None:
    manifests = chart.template({"fullnameOverride": "video"})
    assert all(found["metadata"]["name"].split("-")[0] == "video" for found in manifests)
    [target] = [
        entry["value"]
        for entry in container(workloads(manifests)["denoiser"])["env"]
        if entry["name"] == "CHORUS_DENOISER_CACHE_TARGET"
    ]
    assert target == "video-cache:7402"


def test_pull_secrets_reach_every_workload(chart: Chart, version: str) -> None:
    manifests = chart.template_valid({"image": {"pullSecrets": ["first", "second"]}}, version)
    assert set(workloads(manifests)) == set(COMPONENTS)
    for workload in workloads(manifests).values():
        assert pod_spec(workload)["imagePullSecrets"] == [{"name": "first"}, {"name": "second"}]


EXTENSIONS: dict[str, Any] = {
    "nodeSelector": {"disk": "ssd"},
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podLabels": {"team": "video"},
    "podAnnotations": {"example/inject": "true"},
    "serviceAccountName": "other",
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"},
        {
            "maxSkew": 2,
            "topologyKey": "host",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"team": "video"}},
        },
    ],
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": ""},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ],
    "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    "extraVolumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    "extraInitContainers": [{"name": "fetch", "image": "fetch:1"}],
    "extraContainers": [{"name": "proxy", "image": "proxy:1"}],
    "extraIngress": [{"from": PEERS, "ports": [{"protocol": "TCP", "port": 9090}]}],
    "extraEgress": [{"to": PEERS, "ports": [{"protocol": "TCP", "port": 3128}]}],
}


def test_extensions_reach_every_workload(chart: Chart, version: str) -> None:
    manifests = chart.template_valid(every(EXTENSIONS), version)
    plain = chart.template({})
    policies = select_kinds(manifests, "NetworkPolicy")
    for name in COMPONENTS:
        template = find(manifests, name)
        spec, (own, proxy) = template["spec"], template["spec"]["containers"]
        before, before_own = find(plain, name), container(workloads(plain)[name])
        assert own["name"] == name
        assert proxy == {"name": "proxy", "image": "proxy:1"}
        assert spec["initContainers"] == EXTENSIONS["extraInitContainers"]
        assert template["metadata"]["labels"] == before["metadata"]["labels"] | EXTENSIONS["podLabels"]
        assert template["metadata"]["annotations"] == (
            before["metadata"].get("annotations", {}) | EXTENSIONS["podAnnotations"]
        )
        assert spec["nodeSelector"] == EXTENSIONS["nodeSelector"]
        assert spec["affinity"] == EXTENSIONS["affinity"]
        assert spec["priorityClassName"] == "high"
        assert spec["serviceAccountName"] == "other"
        assert spec["tolerations"] == EXTENSIONS["tolerations"]
        first, second = spec["topologySpreadConstraints"]
        selector = workloads(manifests)[name]["spec"]["selector"]
        assert first == EXTENSIONS["topologySpreadConstraints"][0] | {"labelSelector": selector}
        assert second["labelSelector"] == {"matchLabels": {"team": "video"}}
        assert own["env"] == before_own["env"] + EXTENSIONS["extraEnv"]
        assert own["envFrom"] == EXTENSIONS["extraEnvFrom"]
        assert own["volumeMounts"] == before_own["volumeMounts"] + EXTENSIONS["extraVolumeMounts"]
        assert spec["volumes"] == before["spec"]["volumes"] + EXTENSIONS["extraVolumes"]
        assert EXTENSIONS["extraIngress"][0] in policies[name]["spec"]["ingress"]
        assert EXTENSIONS["extraEgress"][0] in policies[name]["spec"]["egress"]


def test_extended_chart_passes_lint(chart: Chart) -> None:
    done = chart.run("lint --strict", every(EXTENSIONS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_checksum_of_the_configuration_wins_over_an_annotation(chart: Chart) -> None:
    manifests = chart.template(every({"podAnnotations": {"checksum/config": "mine"}}))
    for name in ("milvus", "collector"):
        assert len(find(manifests, name)["metadata"]["annotations"]["checksum/config"]) == 64


@pytest.mark.parametrize(
    ("component", "variable"),
    [
        ("cache", "CHORUS_CACHE_PORT"),
        ("scheduler", "CHORUS_SCHEDULER_DATABASE"),
        ("minio", "MINIO_ROOT_USER"),
        ("milvus", "ETCD_DATA_DIR"),
        ("collector", "TRACES_ENDPOINT"),
        ("jaeger", "JAEGER_LISTEN_HOST"),
    ],
)
def test_variable_of_the_chart_cannot_be_set_again(chart: Chart, component: str, variable: str) -> None:
    error = chart.render_invalid({component: {"extraEnv": [{"name": variable, "value": "1"}]}})
    assert f"{component}.extraEnv: {variable} is set twice, or by the chart" in error


def _volume(*names: str) -> dict[str, Any]:
    return {"extraVolumes": [{"name": name, "emptyDir": {}} for name in names]}


def _mount(*paths: str) -> dict[str, Any]:
    return {"extraVolumeMounts": [{"name": "more", "mountPath": path} for path in paths]}


def _containers(field: str, *names: str) -> dict[str, Any]:
    return {field: [{"name": name, "image": "more:1"} for name in names]}


@pytest.mark.parametrize(
    ("component", "values", "field", "value"),
    [
        *[(name, _volume("tmp"), "extraVolumes", "tmp") for name in (*SERVICES, "minio", "jaeger")],
        ("scheduler", _volume("state"), "extraVolumes", "state"),
        ("cache", {"blobs": "directory", **_volume("state")}, "extraVolumes", "state"),
        ("denoiser", _volume("engines"), "extraVolumes", "engines"),
        ("milvus", _volume("etcd-config"), "extraVolumes", "etcd-config"),
        ("milvus", _volume("data"), "extraVolumes", "data"),  # a claim template of the set
        ("minio", _volume("data"), "extraVolumes", "data"),
        ("collector", _volume("config"), "extraVolumes", "config"),
        ("cache", _volume("more", "more"), "extraVolumes", "more"),
        *[(name, _mount("/tmp"), "extraVolumeMounts", "/tmp") for name in (*SERVICES, "minio", "jaeger")],
        ("cache", _mount("/tmp/"), "extraVolumeMounts", "/tmp"),
        ("scheduler", _mount("/var/lib/chorus"), "extraVolumeMounts", "/var/lib/chorus"),
        ("milvus", _mount("/var/lib/milvus"), "extraVolumeMounts", "/var/lib/milvus"),
        ("collector", _mount("/etc/otel"), "extraVolumeMounts", "/etc/otel"),
        ("cache", _mount("/more", "/more"), "extraVolumeMounts", "/more"),
        *[
            (name, _containers(field, name), field, name)
            for name in COMPONENTS
            for field in ("extraContainers", "extraInitContainers")
        ],
        ("cache", _containers("extraContainers", "a", "a"), "extraContainers", "a"),
        (
            "cache",
            {**_containers("extraContainers", "a"), **_containers("extraInitContainers", "a")},
            "extraInitContainers",
            "a",
        ),
    ],
)
def test_name_or_path_of_the_chart_cannot_be_used_again(
    chart: Chart, component: str, values: dict[str, Any], field: str, value: str
) -> None:
    error = chart.render_invalid({component: values})
    assert f"{component}.{field}: {value} is set twice, or by the chart: choose another" in error


def test_name_that_the_chart_does_not_use_here_is_free(chart: Chart, version: str) -> None:
    """Verifies it with names that the chart gives to volumes of other components or configurations."""
    extra = {**_volume("state", "weights", "config"), **_mount("/var/lib/chorus", "/weights", "/tmp/more")}
    manifests = chart.template_valid({"embedder": extra}, version)
    assert find(manifests, "embedder")["spec"]["volumes"][-3:] == extra["extraVolumes"]


def test_openshift_assigns_the_user_ids(chart: Chart, version: str) -> None:
    values = yaml.safe_load((ROOT / "infra/helm/openshift.yaml").read_text())
    manifests = chart.template_valid(values, version)
    for name in COMPONENTS:
        context = find(manifests, name)["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(context), name
    for policy in select_kinds(manifests, "NetworkPolicy").values():
        for rule in policy["spec"]["egress"]:
            for peer in rule["to"]:
                if "namespaceSelector" in peer:
                    assert "openshift-dns" in str(peer)
                    assert {(each["protocol"], each["port"]) for each in rule["ports"]} == {
                        ("UDP", 5353),
                        ("TCP", 5353),
                    }


def test_security_contexts_can_be_changed_for_one_component(chart: Chart, version: str) -> None:
    changes = {
        "podSecurityContext": {"runAsUser": 1000680000, "fsGroup": None, "supplementalGroups": [5]},
        "containerSecurityContext": {"readOnlyRootFilesystem": False, "capabilities": None},
    }
    for name in COMPONENTS:
        manifests = chart.template_valid({name: changes}, version)
        context = find(manifests, name)["spec"]["securityContext"]
        assert context["runAsUser"] == 1000680000
        assert context["supplementalGroups"] == [5]
        assert "fsGroup" not in context or name == "milvus"
        inner = container(workloads(manifests)[name])["securityContext"]
        assert inner == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": False}
        for other in set(COMPONENTS) - {name, "milvus"}:
            assert find(manifests, other)["spec"]["securityContext"]["runAsUser"] == 10001


def test_security_contexts_can_be_left_to_the_cluster(chart: Chart, version: str) -> None:
    none = {"podSecurityContext": None, "containerSecurityContext": None}
    manifests = chart.template_valid({**none, "milvus": none}, version)
    for workload in workloads(manifests).values():
        assert "securityContext" not in pod_spec(workload)
        assert "securityContext" not in container(workload)


@pytest.mark.parametrize(("host", "bracketed"), [("0.0.0.0", "0.0.0.0"), ("::", "[::]")])
def test_listen_host_reaches_every_program(chart: Chart, version: str, host: str, bracketed: str) -> None:
    found = workloads(chart.template_valid({"network": {"listenHost": host}}, version))
    for name in SERVICES:
        assert environment(found[name])[f"CHORUS_{name.upper()}_HOST"] == host
    assert environment(found["collector"])["LISTEN_HOST"] == bracketed
    assert environment(found["jaeger"])["JAEGER_LISTEN_HOST"] == bracketed


def test_ip_families_reach_every_service(chart: Chart, version: str) -> None:
    network = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    services = select_kinds(chart.template_valid({"network": network}, version), "Service")
    assert set(services) == set(COMPONENTS)
    for service in services.values():
        assert {key: service["spec"][key] for key in network} == network
    for service in select_kinds(chart.template({}), "Service").values():
        assert not set(network) & set(service["spec"])


def test_ipv6_endpoints_open_their_ports(chart: Chart, version: str) -> None:
    values = {
        "minio": {"enabled": False},
        "objectStore": {"external": {"endpoint": "[fd00::1]:9443", "peers": PEERS}},
        "collector": {"enabled": False},
        "telemetry": {"endpoint": "http://[fd00::1]", "peers": PEERS},
    }
    manifests = chart.template_valid(values, version)
    rules = select_kinds(manifests, "NetworkPolicy")["cache"]["spec"]["egress"]
    assert [rule["ports"][0]["port"] for rule in rules if rule["to"] == PEERS] == [9443, 4317]
    assert environment(workloads(manifests)["cache"])["CHORUS_CACHE_S3_ENDPOINT"] == "[fd00::1]:9443"


@pytest.mark.parametrize("resource", ["nvidia.com/mig-1g.10gb", "amd.com/gpu", "gpu.intel.com/i915"])
def test_gpu_resource_of_any_vendor_is_requested(chart: Chart, version: str, resource: str) -> None:
    values = {"denoiser": {"gpu": {"enabled": True, "resource": resource, "count": 2}}}
    workload = workloads(chart.template_valid(values, version))["denoiser"]
    assert container(workload)["resources"]["limits"][resource] == 2
    assert [each["key"] for each in pod_spec(workload)["tolerations"]] == [resource]


def test_storage_class_is_default_none_or_named(chart: Chart, version: str) -> None:
    for given, rendered in (("", None), ("-", ""), ("1e3", "1e3")):
        values = {
            name: {"persistence": {"storageClass": given}}
            for name in ("scheduler", "cache", "milvus", "minio")
        }
        manifests = chart.template_valid({**values, "minio": {**values["minio"]}}, version)
        specs = [select_kinds(manifests, "PersistentVolumeClaim")["scheduler"]["spec"]]
        specs += [
            workloads(manifests)[name]["spec"]["volumeClaimTemplates"][0]["spec"]
            for name in ("milvus", "minio")
        ]
        assert [spec.get("storageClassName") for spec in specs] == [rendered] * 3


def test_image_of_a_service_can_be_a_digest(chart: Chart, version: str) -> None:
    digest = "sha256:" + "0" * 64
    values = {name: {"image": f"registry.example:5000/team/{name}:1.10@{digest}"} for name in COMPONENTS}
    for name, workload in workloads(chart.template_valid(values, version)).items():
        assert container(workload)["image"] == values[name]["image"]


def test_service_account_can_exist_already(chart: Chart, version: str) -> None:
    manifests = chart.template_valid({"serviceAccount": {"create": False, "name": "given"}}, version)
    assert not [found for found in manifests if found["kind"] == "ServiceAccount"]
    assert {find(manifests, name)["spec"]["serviceAccountName"] for name in SERVICES} == {"given"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": {"tag": 20261125}}, "image.tag"),
        ({"scheduler": {"podLabels": {"a": True}}}, "scheduler.podLabels.a"),
        ({"milvus": {"podLabels": {"a": "not a label"}}}, "milvus.podLabels.a"),
        ({"cache": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "cache.podLabels"),
        ({"jaeger": {"podAnnotations": {"a": 1}}}, "jaeger.podAnnotations.a"),
        ({"minio": {"extraEnv": [{"name": "A", "value": 1}]}}, "minio.extraEnv.0.value"),
        ({"minio": {"extraEnv": [{"value": "1"}]}}, "minio.extraEnv.0"),
        ({"cache": {"extraVolumeMounts": [{"name": "a", "path": "/a"}]}}, "cache.extraVolumeMounts.0"),
        ({"cache": {"extraEnvs": []}}, "extraEnvs"),
        ({"cache": {"podSecurityContext": {"runAsUsr": 1}}}, "runAsUsr"),
        ({"podSecurityContext": {"runAsUser": "10001"}}, "podSecurityContext.runAsUser"),
        ({"priorityClassName": "high"}, "priorityClassName"),
        ({"network": {"listenHost": "127.0.0.1"}}, "network.listenHost"),
        ({"network": {"ipFamilies": ["IPv5"]}}, "network.ipFamilies.0"),
        ({"networkPolicy": {"dnsPorts": []}}, "networkPolicy.dnsPorts"),
        ({"networkPolicy": {"dnsPorts": [70000]}}, "networkPolicy.dnsPorts.0"),
        ({"cache": {"image": "cache:latest"}}, "cache.image"),
        ({"fullnameOverride": "1e3"}, "fullnameOverride"),
        ({"objectStore": {"external": {"endpoint": "s3.example:0443"}}}, "objectStore.external.endpoint"),
        ({"milvus": {"external": {"uri": "https://user:secret@m:19530"}}}, "milvus.external.uri"),
        ({"objectStore": {"credentials": "iam"}}, "objectStore.credentials"),
        ({"denoiser": {"gpu": {"resource": "gpu"}}}, "denoiser.gpu.resource"),
    ],
)
def test_value_of_another_type_or_name_is_rejected(chart: Chart, values: dict[str, Any], named: str) -> None:
    assert named in chart.render_invalid(values)


def test_every_component_has_the_same_extensions() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in COMPONENTS:
        assert {*EXTENSIONS, "podSecurityContext", "containerSecurityContext"} <= set(values[name])
