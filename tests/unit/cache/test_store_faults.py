"""Verifies which faults of the stores end the start, against servers that answer as configured."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from services.cache.embedded import EmbeddedIndex
from services.cache.lite_faults import describe_lite_fault
from services.cache.milvus import MilvusIndex
from services.cache.s3 import S3Blobs
from services.object_store.credentials import CredentialsRefused, CredentialsUnavailable
from services.object_store.faults import describe_s3_fault
from services.object_store.variables import S3Variables
from services.runtime.startup import StartupError
from tests.processes import free_port
from tests.tls import make_certificates, serve_tls

pytestmark = pytest.mark.fault("permanent-faults")

VARIABLES = S3Variables("CHORUS_CACHE_S3", "CHORUS_CACHE_S3_BUCKET")


@contextmanager
def serve_s3(status: int, body: str, content_type: str = "application/xml") -> Iterator[int]:
    """Answers every request in the same way; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error_body(code: str) -> str:
    return (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>refused</Message><Resource>/b</Resource>"
        "<RequestId>1</RequestId><HostId>1</HostId></Error>"
    )


async def open_s3(port: int, *, secure: bool = False, ca: str = "", endpoint: str = "") -> S3Blobs:
    return await S3Blobs.open(
        endpoint=endpoint or f"127.0.0.1:{port}",
        bucket="chorus",
        access_key="access",
        secret_key="secret",
        secure=secure,
        region="us-east-1",
        seconds=2,
        threads=1,
        ca=ca,
    )


@pytest.mark.parametrize(
    ("code", "setting"),
    [
        ("InvalidAccessKeyId", "CHORUS_CACHE_S3_ACCESS_KEY"),
        ("SignatureDoesNotMatch", "CHORUS_CACHE_S3_SECRET_KEY"),
        ("AccessDenied", "CHORUS_CACHE_S3_ACCESS_KEY"),
        ("ExpiredToken", "CHORUS_CACHE_S3_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", "clocks"),
        ("SomethingNew", "CHORUS_CACHE_S3_BUCKET"),
    ],
)
async def test_refusal_of_the_object_store_ends_the_start(code: str, setting: str) -> None:
    with serve_s3(403, error_body(code)) as port, pytest.raises(StartupError, match=setting) as failed:
        await open_s3(port)
    assert code in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_bucket_that_may_not_be_created_ends_the_start() -> None:
    refusal = pytest.raises(StartupError, match="CHORUS_CACHE_S3_BUCKET: the bucket does not exist")
    with serve_s3(404, error_body("NoSuchBucket")) as port, refusal:
        await open_s3(port)


async def test_server_of_another_protocol_ends_the_start() -> None:
    refusal = pytest.raises(StartupError, match="does not speak the protocol of S3")
    with serve_s3(200, "<html>console</html>", "text/html") as port, refusal:
        await open_s3(port)
    refusal = pytest.raises(StartupError, match="does not speak the protocol of S3")
    with serve_s3(403, "<p>forbidden", "text/html") as port, refusal:
        await open_s3(port)


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (500, "InternalError"), (400, "RequestTimeout")])
async def test_object_store_that_is_not_ready_is_waited_for(answer: tuple[int, str]) -> None:
    with serve_s3(answer[0], error_body(answer[1])) as port, pytest.raises(TimeoutError):
        await asyncio.wait_for(open_s3(port), 2.5)


async def test_address_without_an_object_store_is_waited_for() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(open_s3(free_port()), 1.5)
    with pytest.raises(TimeoutError):  # a name that is not in the DNS yet
        await asyncio.wait_for(open_s3(0, endpoint="no-such-host.invalid:9000"), 1.5)


async def test_certificate_and_protocol_of_the_object_store_end_the_start(tmp_path: Path) -> None:
    trusted = make_certificates(tmp_path / "trusted")
    other = make_certificates(tmp_path / "other", "another")
    with serve_s3(503, error_body("SlowDown")) as port:
        refusal = pytest.raises(StartupError, match="CHORUS_CACHE_S3_CA")
        with serve_tls(("127.0.0.1", port), trusted, ["http/1.1"]) as tls_port, refusal:
            await open_s3(tls_port, secure=True, ca=str(other.ca))
        with pytest.raises(StartupError, match="CHORUS_CACHE_S3_SECURE"):
            await open_s3(port, secure=True, ca=str(other.ca))


async def test_invalid_endpoint_ends_the_start() -> None:
    with pytest.raises(StartupError, match="CHORUS_CACHE_S3_ENDPOINT"):
        await open_s3(0, endpoint="host:9000/prefix")


@contextmanager
def serve_milvus(code: grpc.StatusCode) -> Iterator[int]:
    """Refuses every call with one status; yields the port."""

    class Refuse(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(code, "refused"))

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Refuse(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "CHORUS_CACHE_MILVUS_TOKEN"),
        (grpc.StatusCode.PERMISSION_DENIED, "CHORUS_CACHE_MILVUS_TOKEN"),
        (grpc.StatusCode.UNIMPLEMENTED, "is no Milvus"),
    ],
)
async def test_refusal_of_the_index_ends_the_start(code: grpc.StatusCode, text: str) -> None:
    with serve_milvus(code) as port, pytest.raises(StartupError, match=text):
        await MilvusIndex.open(f"http://127.0.0.1:{port}", "user:wrong", seconds=5, threads=1)


async def test_index_that_is_not_ready_is_waited_for() -> None:
    with serve_milvus(grpc.StatusCode.UNAVAILABLE) as port:
        opening = MilvusIndex.open(f"http://127.0.0.1:{port}", "", seconds=1, threads=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(opening, 3)


@pytest.mark.parametrize("damaged", ["aliases.json", "collections/chorus_index/schema.json"])
async def test_damaged_index_ends_the_start(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "index.db"
    await (await EmbeddedIndex.open_path(str(path), seconds=30)).close()
    (path / damaged).write_text("{garbage")
    with pytest.raises(StartupError, match=r"CHORUS_CACHE_MILVUS_URI: .* is damaged"):
        await EmbeddedIndex.open_path(str(path), seconds=30)


@pytest.mark.fault("permanent-faults")
def test_refused_role_ends_the_start() -> None:
    refused = CredentialsRefused("CHORUS_CACHE_S3_CREDENTIALS: no credentials: 403")
    unavailable = CredentialsUnavailable("CHORUS_CACHE_S3_CREDENTIALS: no credentials: timeout")
    assert describe_s3_fault(refused, "s3:443", "chorus", VARIABLES) == str(refused)
    assert describe_s3_fault(unavailable, "s3:443", "chorus", VARIABLES) is None


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[Errno 28] No space left on device", "free space on the disk of CHORUS_CACHE_MILVUS_URI"),
        ("[Errno 24] Too many open files", "cannot be opened: .*Too many open files"),
        ("[Errno 12] Cannot allocate memory", "cannot be opened: .*Cannot allocate memory"),
    ],
)
def test_lack_of_a_resource_is_not_a_damaged_index(text: str, remedy: str) -> None:
    fault = describe_lite_fault(MilvusException(message=f"log replay failed: {text}"), "/data/index.db")
    assert fault is not None
    assert re.search(remedy, fault)
    assert "damaged" not in fault
    assert "adopt" not in fault
