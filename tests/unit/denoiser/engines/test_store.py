"""Engines on disk: found by what they depend on, never used damaged, built once."""

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
from services.denoiser.engines.store import MANIFEST, ArtefactError, ArtefactKey, EngineStore

KEY = ArtefactKey(
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
    """Builds two files, of which one is loaded, and counts."""

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


def test_built_once_and_then_found(store: EngineStore, builds: Builds) -> None:
    made = store.ensure(KEY, builds)
    assert made.files == (store.root / KEY.digest / "part-00.engine",)
    assert made.size_bytes == 604
    assert made.facts == {"build_seconds": 1.5}
    assert made.profile == KEY.profile
    assert store.ensure(KEY, builds) == made
    assert EngineStore(store.root).ensure(KEY, builds) == made
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
def test_whatever_an_engine_depends_on_makes_another_one(
    store: EngineStore, builds: Builds, other: ArtefactKey
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


def lose(folder: Path) -> None:
    (folder / "part-00.data").unlink()


def blur(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def strip(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


def swap(folder: Path) -> None:
    """As if the folder of another engine had been copied here."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["key"]["target"] = "sm_80"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def escape(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["name"] = "../part-00.engine"
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [truncate, flip, lose, blur, strip, swap, escape])
def test_what_is_damaged_or_foreign_is_refused_and_built_again(
    store: EngineStore, builds: Builds, damage: Callable[[Path], None]
) -> None:
    made = store.ensure(KEY, builds)
    damage(made.folder)
    with pytest.raises(ArtefactError, match=r"part-00|manifest"):
        store.read(KEY.digest)
    assert store.ensure(KEY, builds).key == made.key
    assert builds.count == 2
    store.read(KEY.digest)


def test_a_build_that_fails_leaves_nothing(store: EngineStore, builds: Builds) -> None:
    def fail(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        builds(folder)
        raise BackendError("no memory")

    with pytest.raises(BackendError, match="no memory"):
        store.ensure(KEY, fail)
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == []
    assert store.ensure(KEY, builds).facts == {"build_seconds": 1.5}


def test_waiting_for_another_build_ends(store: EngineStore, builds: Builds) -> None:
    store.root.mkdir()
    hurried = EngineStore(store.root, wait_seconds=0.05)
    with FileLock(store.root / f"{KEY.digest}.lock"), pytest.raises(BackendError, match="another process"):
        hurried.ensure(KEY, builds)
    assert builds.count == 0


def test_waiting_can_be_stopped(store: EngineStore, builds: Builds) -> None:
    store.root.mkdir()
    with (
        FileLock(store.root / f"{KEY.digest}.lock"),
        pytest.raises(BackendError, match=r"waiting .* was stopped"),
    ):
        store.ensure(KEY, builds, report=lambda _: False)


def test_what_is_being_built_is_not_listed(store: EngineStore, builds: Builds) -> None:
    made = store.ensure(KEY, builds)
    made.folder.rename(store.root / f"{KEY.digest}.part")  # as a kill leaves it, just before the rename
    assert list(store.manifests()) == []
    assert store.ensure(KEY, builds) == made


def _build_in_a_process(root: Path, barrier: Barrier) -> None:
    def build(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        with (root / "builds").open("a") as file:
            file.write("x")
        return Builds()(folder)

    barrier.wait(60)
    EngineStore(root).ensure(KEY, build)


def test_two_builders_build_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [spawn.Process(target=_build_in_a_process, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "builds").read_text() == "x"
