"""Verifies that a fault that no wait can cure ends a service at once, with a line that names the setting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from milvus_lite import MilvusLite

from tests.processes import ROOT, free_port

pytestmark = pytest.mark.fault("permanent-faults")

# The limit on the start is 300 s, so a process that ends within this time did not wait for it.
SECONDS = 100.0


def run_service(name: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a service until it ends by itself."""
    prefix = f"CHORUS_{name.upper()}"
    return subprocess.run(
        [sys.executable, "-m", f"services.{name}"],
        cwd=ROOT,
        env={**os.environ, f"{prefix}_HOST": "127.0.0.1", f"{prefix}_PORT": str(free_port()), **env},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def assert_refused(name: str, env: Mapping[str, str], *texts: str) -> None:
    ended = run_service(name, env)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"{name}: "), ended.stderr
    for text in texts:
        assert text in last


def cache_env(directory: Path) -> dict[str, str]:
    return {
        "CHORUS_CACHE_MILVUS_URI": str(directory / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(directory / "blobs"),
    }


@pytest.fixture
def locked_index(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "milvus.db"
    index = MilvusLite(str(path))
    yield path
    index.close()


def test_locked_index_ends_the_cache(locked_index: Path, tmp_path: Path) -> None:
    assert_refused(
        "cache",
        cache_env(tmp_path),
        "CHORUS_CACHE_MILVUS_URI",
        "in use by another process",
        str(locked_index),
    )


def test_damaged_index_ends_the_cache(tmp_path: Path) -> None:
    (tmp_path / "milvus.db").mkdir()
    (tmp_path / "milvus.db" / "aliases.json").write_text("{garbage")
    assert_refused("cache", cache_env(tmp_path), "CHORUS_CACHE_MILVUS_URI", "is damaged")


def test_file_in_place_of_the_blob_directory_ends_the_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    assert_refused("cache", cache_env(tmp_path), "CHORUS_CACHE_BLOB_DIR", "Not a directory")


def test_endpoint_with_a_path_is_an_invalid_setting(tmp_path: Path) -> None:
    ended = run_service(
        "cache",
        {
            **cache_env(tmp_path),
            "CHORUS_CACHE_BLOBS": "s3",
            "CHORUS_CACHE_S3_ENDPOINT": "host:9000/prefix",
            "CHORUS_CACHE_S3_ACCESS_KEY": "key",
            "CHORUS_CACHE_S3_SECRET_KEY": "secret",
        },
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("CHORUS_CACHE_S3_ENDPOINT: ")


def test_end_of_the_startup_limit_names_what_was_waited_for(tmp_path: Path) -> None:
    env = {
        **cache_env(tmp_path),
        "CHORUS_CACHE_BLOBS": "s3",
        "CHORUS_CACHE_S3_ENDPOINT": f"127.0.0.1:{free_port()}",
        "CHORUS_CACHE_S3_ACCESS_KEY": "key",
        "CHORUS_CACHE_S3_SECRET_KEY": "secret",
        "CHORUS_CACHE_S3_SECURE": "false",
        "CHORUS_CACHE_BLOB_SECONDS": "0.5",
        "CHORUS_CACHE_STARTUP_SECONDS": "8",
    }
    assert_refused("cache", env, "within 8 s (CHORUS_CACHE_STARTUP_SECONDS)", "still waits for s3")


@pytest.mark.parametrize("variable", ["VIDEO_DIR", "DATABASE"])
def test_unusable_path_ends_the_scheduler(tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").write_text("")
    env = {
        "CHORUS_SCHEDULER_DATABASE": str(tmp_path / "jobs.db"),
        "CHORUS_SCHEDULER_VIDEO_DIR": str(tmp_path / "videos"),
        f"CHORUS_SCHEDULER_{variable}": str(tmp_path / "file" / "below"),
    }
    assert_refused("scheduler", env, f"CHORUS_SCHEDULER_{variable}: ", str(tmp_path / "file" / "below"))


def test_unusable_object_store_of_videos_ends_the_scheduler(tmp_path: Path) -> None:
    """A server of another protocol answers in place of an object store."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        env = {
            "CHORUS_SCHEDULER_DATABASE": str(tmp_path / "jobs.db"),
            "CHORUS_SCHEDULER_VIDEO_STORE": "s3://videos",
            "CHORUS_SCHEDULER_S3_ENDPOINT": f"127.0.0.1:{server.server_port}",
            "CHORUS_SCHEDULER_S3_ACCESS_KEY": "key",
            "CHORUS_SCHEDULER_S3_SECRET_KEY": "hush-hush",
            "CHORUS_SCHEDULER_S3_SECURE": "false",
            "CHORUS_SCHEDULER_S3_REGION": "us-east-1",
        }
        assert_refused("scheduler", env, "CHORUS_SCHEDULER_S3_ENDPOINT: ", "protocol of S3")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["embedder", "denoiser"])
def test_missing_device_is_named(name: str) -> None:
    variable = f"CHORUS_{name.upper()}_DEVICE"
    assert_refused(name, {variable: "cuda"}, variable, "torch finds no CUDA device")


def test_directory_without_an_encoder_ends_the_embedder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{garbage")
    env = {"CHORUS_EMBEDDER_CONDITIONING": f"umt5:{tmp_path}"}
    assert_refused("embedder", env, "CHORUS_EMBEDDER_CONDITIONING", str(tmp_path))
