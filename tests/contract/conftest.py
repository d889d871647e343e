"""Implementations that every contract runs against.

Servers are named by CHORUS_TEST_MILVUS_URI, CHORUS_TEST_S3_ENDPOINT, CHORUS_TEST_S3_ACCESS_KEY and
CHORUS_TEST_S3_SECRET_KEY; without them, only the embedded implementations and an S3 server in memory are
tested.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy.engine import URL

from services.cache.blobs import Blobs
from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.hot import HotBlobs
from services.cache.index import Index
from services.cache.milvus import MilvusIndex
from services.cache.s3 import S3Blobs
from tests.postgresql import create_database, running_server

SECONDS = 30.0

# Opens the store that earlier calls in the test wrote to.
OpenIndex = Callable[[], Awaitable[Index]]
OpenBlobs = Callable[[], Awaitable[Blobs]]


def require_variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        pytest.skip(f"{name} is not set: make test-servers starts such a server")
    return value


@pytest.fixture(params=["milvus-lite", pytest.param("milvus", marks=pytest.mark.servers)])
async def open_index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenIndex]:
    """Opens the same index at every call. Tests share a server's index, so each uses its own tenant."""
    lite = request.param == "milvus-lite"
    uri = str(tmp_path / "index.db") if lite else require_variable("CHORUS_TEST_MILVUS_URI")
    opened: list[Index] = []

    async def open_one() -> Index:
        if lite:
            opened.append(await EmbeddedIndex.open_path(uri, seconds=SECONDS))
        else:
            opened.append(await MilvusIndex.open(uri, "", seconds=SECONDS, threads=4))
        return opened[-1]

    yield open_one
    for index in opened:
        await index.close()


@pytest.fixture
async def index(open_index: OpenIndex) -> Index:
    return await open_index()


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """S3 server in memory; yields host:port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(params=["directory", "s3-memory", pytest.param("s3", marks=pytest.mark.servers)])
def open_blobs(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBlobs:
    """Opens the same object store at every call; each test has its own bucket."""
    if request.param == "directory":
        return lambda: DirectoryBlobs.open(tmp_path / "blobs", seconds=SECONDS, threads=4)
    if request.param == "s3-memory":
        endpoint, access_key, secret_key = request.getfixturevalue("moto"), "access", "secret"
    else:
        endpoint = require_variable("CHORUS_TEST_S3_ENDPOINT")
        access_key = require_variable("CHORUS_TEST_S3_ACCESS_KEY")
        secret_key = require_variable("CHORUS_TEST_S3_SECRET_KEY")
    bucket = f"chorus-test-{uuid.uuid4().hex[:12]}"
    return lambda: S3Blobs.open(
        endpoint=endpoint.removeprefix("http://"),
        bucket=bucket,
        access_key=access_key,
        secret_key=secret_key,
        secure=False,
        region="us-east-1",
        seconds=SECONDS,
        threads=4,
    )


@pytest.fixture(params=[False, True], ids=["plain", "hot"])
async def blobs(open_blobs: OpenBlobs, request: pytest.FixtureRequest) -> AsyncIterator[Blobs]:
    """Object store, plain and behind the memory for what was read recently."""
    store = await open_blobs()
    if request.param:
        store = HotBlobs(store, 8 << 20)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    with running_server(tmp_path_factory.mktemp("pg")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Location of an empty job database."""
    if request.param == "sqlite":
        return str(tmp_path / "sub" / "jobs.db")
    return create_database(request.getfixturevalue("postgresql"))


@pytest.fixture
def tenant() -> str:
    """Tenant that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"
