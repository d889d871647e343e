"""Verifies the credentials that the cache sends to an S3 server: temporary keys, a role, the environment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from minio.credentials.providers import Provider

from services.cache.__main__ import open_blobs
from services.cache.settings import CacheSettings
from services.object_store.credentials import CredentialsRefused, CredentialsUnavailable, open_role_provider

pytestmark = pytest.mark.fault("helm")

ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>issued-{number}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
<SessionToken>session-{number}</SessionToken><Expiration>{expiration}</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""

# Answer to the list of objects by which the cache checks its access.
EMPTY_BUCKET = b"<ListBucketResult><Name>chorus</Name><IsTruncated>false</IsTruncated></ListBucketResult>"


@dataclass
class Server:
    """Bucket that exists, and a token service; records what it is sent.

    Attributes:
        keys: access key and session token of each request to the bucket.
        roles: parameters of each request to the token service.
        lifetime: time until issued credentials expire, in seconds; 0 refuses to issue any.
    """

    port: int = 0
    keys: list[tuple[str, str]] = field(default_factory=list)
    roles: list[dict[str, list[str]]] = field(default_factory=list)
    lifetime: float = 3600.0


@contextmanager
def serve() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            key = self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
            state.keys.append((key, self.headers.get("X-Amz-Security-Token", "")))
            self.answer(200, EMPTY_BUCKET if self.command == "GET" else b"")

        do_GET = do_HEAD

        def do_POST(self) -> None:
            state.roles.append(parse_qs(urlsplit(self.path).query))
            if not state.lifetime:
                self.answer(403, b"denied")
                return
            expiration = datetime.now(UTC) + timedelta(seconds=state.lifetime)
            text = ANSWER.format(
                number=len(state.roles), expiration=expiration.strftime("%Y-%m-%dT%H:%M:%SZ")
            )
            self.answer(200, text.encode())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as state:
        yield state


@pytest.fixture
def variables(server: Server, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("CHORUS_CACHE_BLOBS", "s3")
    monkeypatch.setenv("CHORUS_CACHE_S3_ENDPOINT", f"127.0.0.1:{server.port}")
    monkeypatch.setenv("CHORUS_CACHE_S3_SECURE", "false")
    monkeypatch.setenv("CHORUS_CACHE_S3_REGION", "eu-west-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def identity(variables: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> Path:
    """Variables of a web identity, as a cluster sets them; yields the file of its token."""
    token = tmp_path / "token"
    token.write_text("eyJ-first")
    variables.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    variables.setenv("AWS_ROLE_ARN", "arn:aws:iam::012345678901:role/chorus")
    variables.setenv("CHORUS_CACHE_S3_CREDENTIALS", "role")
    variables.setenv("CHORUS_CACHE_S3_STS_ENDPOINT", f"http://127.0.0.1:{server.port}")
    return token


def open_role(endpoint: str) -> Provider:
    return open_role_provider(
        variable="CHORUS_CACHE_S3_CREDENTIALS", endpoint=endpoint, region="", ca="", seconds=5
    )


async def open_and_close() -> None:
    blobs = await open_blobs(CacheSettings())
    await blobs.close()


async def test_session_token_is_sent_with_the_keys(variables: pytest.MonkeyPatch, server: Server) -> None:
    variables.setenv("CHORUS_CACHE_S3_ACCESS_KEY", "0123456")
    variables.setenv("CHORUS_CACHE_S3_SECRET_KEY", "1e3")
    variables.setenv("CHORUS_CACHE_S3_SESSION_TOKEN", "true")
    await open_and_close()
    assert server.keys == [("0123456", "true")]


async def test_keys_of_the_environment_are_sent(variables: pytest.MonkeyPatch, server: Server) -> None:
    variables.setenv("CHORUS_CACHE_S3_CREDENTIALS", "environment")
    variables.setenv("AWS_ACCESS_KEY_ID", "0777")
    variables.setenv("AWS_SECRET_ACCESS_KEY", "null")
    variables.setenv("AWS_SESSION_TOKEN", "1_000")
    await open_and_close()
    assert server.keys == [("0777", "1_000")]


async def test_role_of_a_web_identity_is_assumed(identity: Path, server: Server) -> None:
    await open_and_close()
    assert server.keys == [("issued-1", "session-1")]
    [request] = server.roles
    assert request["Action"] == ["AssumeRoleWithWebIdentity"]
    assert request["RoleArn"] == ["arn:aws:iam::012345678901:role/chorus"]
    assert request["WebIdentityToken"] == ["eyJ-first"]


def test_expired_credentials_are_renewed_with_the_current_token(identity: Path, server: Server) -> None:
    provider = open_role(f"http://127.0.0.1:{server.port}")
    assert provider.retrieve().access_key == provider.retrieve().access_key == "issued-1"
    server.lifetime = 1  # less than the margin of the client: expired on arrival
    provider = open_role(f"http://127.0.0.1:{server.port}")
    provider.retrieve()
    identity.write_text("eyJ-second")
    assert provider.retrieve().access_key == "issued-3"
    assert [request["WebIdentityToken"] for request in server.roles] == [
        ["eyJ-first"],
        ["eyJ-first"],
        ["eyJ-second"],
    ]


def test_refused_role_is_reported_without_its_token(
    identity: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.lifetime = 0
    provider = open_role(f"http://127.0.0.1:{server.port}")
    with pytest.raises(CredentialsRefused, match=r"CHORUS_CACHE_S3_CREDENTIALS: .* 403") as caught:
        provider.retrieve()
    unreachable = open_role("http://127.0.0.1:1")
    with pytest.raises(CredentialsUnavailable, match="refused") as also:
        unreachable.retrieve()
    assert not isinstance(also.value, CredentialsRefused)
    for error in (caught, also):
        assert "eyJ" not in str(error.getrepr(style="long"))
    assert "eyJ" not in caplog.text
