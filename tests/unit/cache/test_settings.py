"""Verifies the settings of the cache that depend on each other: certificates and credentials."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.cache.__main__ import make_access
from services.cache.settings import CacheSettings
from services.runtime.settings import load_settings
from tests.tls import make_certificates

pytestmark = pytest.mark.fault("helm")

S3 = {"BLOBS": "s3", "S3_ENDPOINT": "s3.example"}
KEYS = {"S3_ACCESS_KEY": "0123456", "S3_SECRET_KEY": "1e3"}


def reject(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], values: dict[str, str]
) -> str:
    """Returns what is printed about variables that the cache must reject."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(f"CHORUS_CACHE_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load_settings(CacheSettings)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "variable", "reason"),
    [
        ({**S3}, "S3_ACCESS_KEY", "must be set"),
        ({**S3, **KEYS, "S3_CREDENTIALS": "role"}, "S3_ACCESS_KEY", "must be empty"),
        ({**S3, "S3_CREDENTIALS": "role", "S3_SESSION_TOKEN": "t"}, "S3_SESSION_TOKEN", "must be empty"),
        ({**S3, "S3_CREDENTIALS": "environment"}, "S3_CREDENTIALS", "AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ({**S3, "S3_CREDENTIALS": "iam"}, "S3_CREDENTIALS", "'keys', 'environment' or 'role'"),
        ({**S3, "S3_STS_ENDPOINT": "sts.example"}, "S3_STS_ENDPOINT", "pattern"),
        ({**S3, **KEYS, "S3_ENDPOINT": "fd00::7:9000"}, "S3_ENDPOINT", "brackets"),
        ({"MILVUS_URI": "https://[fd00::7]:19530"}, "MILVUS_URI", "must name the host"),
        ({"MILVUS_CA": __file__, "MILVUS_URI": "http://m:1"}, "MILVUS_CA", "https://"),
        ({"MILVUS_CA": __file__, "MILVUS_URI": "https://m:1"}, "MILVUS_CA", "must be a PEM file"),
        ({"MILVUS_CA": "/no/such/file", "MILVUS_URI": "https://m:1"}, "MILVUS_CA", "No such file"),
        ({"MILVUS_CA": "/", "MILVUS_URI": "https://m:1"}, "MILVUS_CA", "directory"),
        ({**S3, **KEYS, "S3_SECURE": "false", "S3_CA": __file__}, "S3_CA", "must be empty"),
        ({**S3, **KEYS, "S3_CA": __file__}, "S3_CA", "must be a PEM file"),
        ({"TENANT_LIFETIMES": "acme"}, "TENANT_LIFETIMES", "must be NAME=VALUE"),
        ({"TENANT_LIFETIMES": "acme=1, acme=2"}, "TENANT_LIFETIMES", "twice"),
        ({"TENANT_LIFETIMES": "acme=-1"}, "TENANT_LIFETIMES", "greater than or equal to 0"),
        ({"TENANT_LIFETIMES": "Acme=1"}, "TENANT_LIFETIMES", "pattern"),
    ],
)
def test_contradiction_is_named(
    values: dict[str, str],
    variable: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = reject(monkeypatch, capsys, values)
    assert f"CHORUS_CACHE_{variable}: " in lines
    assert reason.lower() in lines.lower()


def test_secret_of_a_rejected_setting_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = reject(monkeypatch, capsys, {**S3, "S3_CREDENTIALS": "role", "S3_SECRET_KEY": "hush"})
    assert "CHORUS_CACHE_S3_SECRET_KEY: " in lines
    assert "hush" not in lines


def test_certificates_and_numeric_looking_keys_are_accepted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = str(make_certificates(tmp_path).ca)
    values = {**S3, **KEYS, "S3_CA": ca, "MILVUS_URI": "https://m:19530", "MILVUS_CA": ca}
    for name, value in values.items():
        monkeypatch.setenv(f"CHORUS_CACHE_{name}", value)
    loaded = load_settings(CacheSettings)
    assert (loaded.milvus_ca, loaded.s3_ca) == (ca, ca)
    assert loaded.s3_access_key.get_secret_value() == "0123456"
    assert loaded.s3_secret_key.get_secret_value() == "1e3"


SECRETS = {
    "SCHEDULER_KEY": "s" * 16,
    "DENOISER_KEY": "d" * 16,
    "GATEWAY_KEY": "g" * 16,
    "OPERATOR_KEY": "o" * 16,
}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"SCHEDULER_KEY": "s" * 15}, "CHORUS_CACHE_SCHEDULER_KEY: Value error, must be 16 to 512"),
        ({"DENOISER_KEY": "spaces are not sent whole"}, "CHORUS_CACHE_DENOISER_KEY: Value error, must be 16"),
        ({"OPERATOR_KEY": "ö" * 16}, "CHORUS_CACHE_OPERATOR_KEY: Value error, must be 16 to 512"),
        ({"SCHEDULER_KEY": "s" * 16}, "SCHEDULER_KEY and CHORUS_CACHE_DENOISER_KEY must both be set"),
        ({"OPERATOR_KEY": "o" * 16}, "SCHEDULER_KEY and CHORUS_CACHE_DENOISER_KEY must both be set"),
        ({**SECRETS, "DENOISER_KEY": "s" * 16}, "the keys of scheduler, denoiser, gateway and operator must"),
        ({**SECRETS, "GATEWAY_KEY": "o" * 16}, "the keys of scheduler, denoiser, gateway and operator must"),
        ({"KEYLESS_TENANTS": "default,Not One"}, "CHORUS_CACHE_KEYLESS_TENANTS"),
        ({"SHARES": "acme"}, "CHORUS_CACHE_SHARES"),
        ({"SHARES": "acme=studio,acme=*"}, "CHORUS_CACHE_SHARES"),
    ],
)
def test_key_that_cannot_be_honoured_is_named_and_not_shown(
    values: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = reject(monkeypatch, capsys, values)
    assert reason in shown
    assert not any(value in shown for name, value in values.items() if name.endswith("_KEY"))


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("10.1.2.3", True)],
)
def test_cache_without_keys_that_others_can_reach_warns(host: str, warned: bool) -> None:
    with capture_logs() as logs:
        make_access(CacheSettings(host=host))
    assert ["callers need no key" in line["event"] for line in logs] == [True] * warned
    with capture_logs() as logs:
        make_access(CacheSettings(host=host, **{name.lower(): key for name, key in SECRETS.items()}))  # type: ignore[arg-type]
    assert logs == []
