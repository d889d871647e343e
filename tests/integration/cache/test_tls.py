"""Verifies the cache process with stores behind TLS, whose certificates an authority of their own signed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chorus_rpc.tenancy import tenant_metadata
from milvus_lite.server_manager import server_manager_instance
from moto.server import ThreadedMotoServer

from tests.contract.samples import admission, latents, new_entry
from tests.integration.cache.calls import admitted, connected, donors
from tests.processes import ServiceProcess, free_port, start_service
from tests.tls import Certificates, make_certificates, serve_tls

pytestmark = pytest.mark.fault("helm")

TENANT = tenant_metadata("tls")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("other"), "another")


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Server of Milvus Lite, which speaks the protocol of a Milvus."""
    path = str(tmp_path_factory.mktemp("milvus") / "index.db")
    uri = server_manager_instance.start_and_get_uri(path)
    assert uri is not None
    yield "127.0.0.1", int(uri.rpartition(":")[2])
    server_manager_instance.release_server(path)


def variables(milvus_port: int, s3_port: int, ca: Path, s3_host: str = "127.0.0.1") -> dict[str, str]:
    return {
        "CHORUS_CACHE_MILVUS_URI": f"https://127.0.0.1:{milvus_port}",
        "CHORUS_CACHE_MILVUS_CA": str(ca),
        "CHORUS_CACHE_MILVUS_SECONDS": "10",
        "CHORUS_CACHE_BLOBS": "s3",
        "CHORUS_CACHE_S3_ENDPOINT": f"{s3_host}:{s3_port}",
        "CHORUS_CACHE_S3_CA": str(ca),
        "CHORUS_CACHE_S3_ACCESS_KEY": "0123456",
        "CHORUS_CACHE_S3_SECRET_KEY": "1e3",
        "CHORUS_CACHE_KEYLESS_TENANTS": "*",
    }


async def test_authorities_of_the_settings_are_accepted(
    milvus: tuple[str, int],
    s3: tuple[str, int],
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    with (
        serve_tls(milvus, certificates) as milvus_port,
        serve_tls(s3, certificates, ["http/1.1"], host="::1") as s3_port,
        start_service(
            "cache", variables(milvus_port, s3_port, certificates.ca, "[::1]"), tmp_path
        ) as service,
    ):
        async with connected(service) as stub:
            reply = await admitted(stub, TENANT, admission(new_entry(), {1: latents(1)}))
            assert [donor.entry.entry_id for donor in await donors(stub, TENANT)] == [reply.entry_id]


def start_until_logged(env: dict[str, str], text: str, directory: Path) -> None:
    """Starts a cache until its log contains `text`. Fails if it serves, or after 30 s."""
    service = ServiceProcess("cache", env, free_port(), directory / f"{free_port()}.log")
    service.start(wait=False)
    try:
        end = time.monotonic() + 30
        while text not in service.log.read_text():
            assert time.monotonic() < end, service.tail()
            time.sleep(0.1)
        assert "serving" not in service.log.read_text()
    finally:
        service.kill()


def test_certificate_of_another_authority_is_named(
    milvus: tuple[str, int],
    s3: tuple[str, int],
    certificates: Certificates,
    other: Certificates,
    tmp_path: Path,
) -> None:
    with (
        serve_tls(milvus, certificates) as milvus_port,
        serve_tls(s3, certificates, ["http/1.1"]) as s3_port,
    ):
        env = variables(milvus_port, s3_port, certificates.ca) | {"CHORUS_CACHE_MILVUS_SECONDS": "1"}
        start_until_logged(
            {**env, "CHORUS_CACHE_MILVUS_CA": str(other.ca)},
            "CHORUS_CACHE_MILVUS_CA: its certificate is not accepted: ",
            tmp_path,
        )
        env["CHORUS_CACHE_MILVUS_SECONDS"] = "10"
        start_until_logged(
            {**env, "CHORUS_CACHE_S3_CA": str(other.ca)}, "certificate verify failed", tmp_path
        )


def test_index_without_tls_is_named(
    milvus: tuple[str, int], certificates: Certificates, tmp_path: Path
) -> None:
    env = variables(milvus[1], 1, certificates.ca) | {"CHORUS_CACHE_MILVUS_SECONDS": "1"}
    start_until_logged(
        env, "CHORUS_CACHE_MILVUS_URI, CHORUS_CACHE_MILVUS_CA: it does not answer with TLS", tmp_path
    )
