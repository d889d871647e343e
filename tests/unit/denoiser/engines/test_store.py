"""Verifies the engine store: engines are found by their key, never used damaged, and built once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.engines.store import MANIFEST, EngineError, EngineKey, EngineStore

KEY = EngineKey(
    model_id="tiny",
    weights_digest="ab" * 32,
    adapters=(),
    network={"layers": 2, "patch_size": (1, 2, 2)},
    graph="1",
    runtime="tensorrt_rtx 1.7",
    target="sm_89",
    precision="bfloat16",
    fp8=False,
    blocks_each=0,
    profile=Profile(Sizes(1, 64, 128), Sizes(1, 8, 16)),
)


class Builds:
    """Build function that writes two files, of which one is loaded, and counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, folder: Path) -> tuple[list[Path], dict[str, Any]]:
        self.count += 1
        (folder / "part-00.engine").write_bytes(b"engine" * 100)
        (folder / "part-00.data").write_bytes(b"data")
        return [folder / "part-00.engine"], {"build_seconds": 1.5}


@pytest.fixture
def builds() -> Builds:
    return Builds()


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def test_ensure_builds_once_and_then_finds_the_engine(store: EngineStore, builds: Builds) -> None:
    engine = store.ensure(KEY, builds)
    assert engine.files == (store.root / KEY.digest / "part-00.engine",)
    assert engine.size_bytes == 604
    assert engine.facts == {"build_seconds": 1.5}
    assert engine.profile == KEY.profile
    assert store.ensure(KEY, builds) == engine
    assert EngineStore(store.root).ensure(KEY, builds) == engine
    assert builds.count == 1
    store.ensure(KEY, builds, rebuild=True)
    assert builds.count == 2
    assert [digest for digest, _ in store.manifests()] == [KEY.digest]


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, weights_digest="cd" * 32),
        replace(KEY, adapters=(("ef" * 32, 0.5),)),
        replace(KEY, network={"layers": 3, "patch_size": (1, 2, 2)}),
        replace(KEY, graph="2"),
        replace(KEY, runtime="tensorrt 11.4"),
        replace(KEY, target="sm_90"),
        replace(KEY, precision="float16"),
        replace(KEY, fp8=True),
        replace(KEY, blocks_each=1),
        replace(KEY, profile=Profile(Sizes(1, 64, 256), Sizes(1, 8, 16))),
        replace(KEY, options={"weight_streaming": True}),
    ],
)
def test_every_field_of_the_key_selects_a_different_engine(
    store: EngineStore, builds: Builds, other: EngineKey
) -> None:
    store.ensure(KEY, builds)
    assert other.digest != KEY.digest
    store.ensure(other, builds)
    assert builds.count == 2


def truncate(folder: Path) -> None:
    path = folder / "part-00.engine"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "part-00.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def delete(folder: Path) -> None:
    (folder / "part-00.data").unlink()


def break_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


def swap_key(folder: Path) -> None:
    """Simulates a copied folder of another engine."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["key"]["target"] = "sm_80"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def escape_folder(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["name"] = "../part-00.engine"
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage", [truncate, flip, delete, break_json, empty_manifest, swap_key, escape_folder]
)
def test_damaged_or_foreign_engines_are_rejected_and_built_again(
    store: EngineStore, builds: Builds, damage: Callable[[Path], None]
) -> None:
    engine = store.ensure(KEY, builds)
    damage(engine.folder)
    with pytest.raises(EngineError, match=r"part-00|manifest"):
        store.read(KEY.digest)
    assert store.ensure(KEY, builds).key == engine.key
    assert builds.count == 2
    store.read(KEY.digest)


def test_failed_build_leaves_no_files(store: EngineStore, builds: Builds) -> None:
    def fail(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        builds(folder)
        raise BackendError("no memory")

    with pytest.raises(BackendError, match="no memory"):
        store.ensure(KEY, fail)
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == []
    assert store.ensure(KEY, builds).facts == {"build_seconds": 1.5}


def test_wait_for_another_build_times_out(store: EngineStore, builds: Builds) -> None:
    store.root.mkdir()
    impatient = EngineStore(store.root, wait_seconds=0.05)
    with FileLock(store.root / f"{KEY.digest}.lock"), pytest.raises(BackendError, match="another process"):
        impatient.ensure(KEY, builds)
    assert builds.count == 0


def test_wait_can_be_cancelled(store: EngineStore, builds: Builds) -> None:
    store.root.mkdir()
    with (
        FileLock(store.root / f"{KEY.digest}.lock"),
        pytest.raises(BackendError, match=r"wait .* was cancelled"),
    ):
        store.ensure(KEY, builds, report=lambda _: False)


def test_unfinished_builds_are_not_listed(store: EngineStore, builds: Builds) -> None:
    engine = store.ensure(KEY, builds)
    engine.folder.rename(store.root / f"{KEY.digest}.part")  # state after a kill just before the rename
    assert list(store.manifests()) == []
    assert store.ensure(KEY, builds) == engine


def _build_in_a_process(root: Path, barrier: Barrier) -> None:
    def build(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        with (root / "builds").open("a") as file:
            file.write("x")
        return Builds()(folder)

    barrier.wait(60)
    EngineStore(root).ensure(KEY, build)


def test_two_processes_build_an_engine_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [spawn.Process(target=_build_in_a_process, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "builds").read_text() == "x"


def test_engine_in_a_folder_that_cannot_be_written_is_found(
    store: EngineStore, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = store.ensure(KEY, builds)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("services.denoiser.engines.store.FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert store.ensure(KEY, builds) == engine
    with pytest.raises(BackendError, match=r"engines: cannot be written: .*CHORUS_DENOISER_ENGINES"):
        store.ensure(replace(KEY, graph="2"), builds)
    assert builds.count == 1


def test_full_disk_is_an_error_that_names_the_setting(store: EngineStore) -> None:
    def fail(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        raise OSError(28, "No space left on device")

    with pytest.raises(BackendError, match="No space left on device: let CHORUS_DENOISER_ENGINES"):
        store.ensure(KEY, fail)
    assert not list(store.root.glob("*.part"))


def test_prune_keeps_the_newest_engines_of_a_model_and_runtime(store: EngineStore, builds: Builds) -> None:
    keys = [replace(KEY, runtime=f"onnxruntime 1.{number}") for number in range(5)]
    others = [KEY, replace(KEY, model_id="other", runtime="onnxruntime 1.0")]
    for second, key in enumerate([*keys, *others]):
        manifest = store.ensure(key, builds).folder / MANIFEST
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"built": f"2026-01-01T00:00:0{second}"}))
    used = store.read(keys[0].digest)  # the oldest one
    store.prune(used, keep=2)
    left = {digest for digest, _ in store.manifests()}
    assert left == {key.digest for key in (keys[0], keys[3], keys[4], *others)}


def test_prune_deletes_interrupted_builds_but_not_running_ones(store: EngineStore, builds: Builds) -> None:
    used = store.ensure(KEY, builds)
    interrupted, running = (store.root / f"{digit * 32}.part" for digit in "ab")
    for folder in (interrupted, running):
        folder.mkdir()
        (folder / "part-00.onnx").touch()
    with FileLock(store.root / f"{running.stem}.lock"):
        store.prune(used, keep=0)
    assert not interrupted.exists()
    assert running.exists()
    assert store.read(used.digest) == used
