"""Built graphs and engines on disk: found by everything they depend on, checked before they are used.

A folder for each key, named by the key's digest; its manifest is written last. Two builders of one key wait
for one another. What is damaged, or not what its manifest says, is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from services.denoiser.backends.base import BackendError, Progress
from services.denoiser.backends.graph_backend import Profile
from services.runtime.logs import get_logger

log = get_logger("denoiser.artefacts")

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 22
_SLICE = 1.0  # seconds of a wait, after which it may be stopped


@dataclass(frozen=True)
class ArtefactKey:
    """Everything that makes one artefact differ from another.

    Args:
        weights_digest: SHA-256 of the weights.
        adapters: digest and scale of each that is merged into them.
        network: sizes of the network, by name.
        graph: version of the graph and of its export.
        runtime: module that runs it, with its version: "tensorrt_rtx 1.7.1.116".
        target: what it runs on: "sm_89", or "cpu".
        precision: "float32", "float16" or "bfloat16".
        fp8: whether the matrices of the blocks are in 8 bits.
        blocks_each: blocks of one part; 0 is all in one.
        profile: sizes it is built for.
        options: whatever else the builder was told.
    """

    model_id: str
    weights_digest: str
    adapters: tuple[tuple[str, float], ...]
    network: Mapping[str, Any]
    graph: str
    runtime: str
    target: str
    precision: str
    fp8: bool
    blocks_each: int
    profile: Profile
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "network": dict(self.network), "options": dict(self.options)}

    @property
    def digest(self) -> str:
        """32 hex digits."""
        return _digest(plain(self))


def plain(key: ArtefactKey) -> dict[str, Any]:
    """A key as a manifest has it, tuples as lists."""
    found: dict[str, Any] = json.loads(json.dumps(key.as_dict(), default=list))
    return found


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Artefact:
    """What was built: its folder, its key as the manifest has it, its files in order, and facts."""

    folder: Path
    key: Mapping[str, Any]
    files: tuple[Path, ...]
    facts: Mapping[str, Any]
    built: str
    size_bytes: int

    @property
    def digest(self) -> str:
        return self.folder.name

    @property
    def profile(self) -> Profile:
        return Profile.from_dict(self.key["profile"])


class ArtefactError(BackendError):
    """An artefact is not there, or not what its manifest says."""


# Writes its files into a folder; returns those to be loaded, in order, and facts about the build.
Build = Callable[[Path], tuple[list[Path], dict[str, Any]]]


class EngineStore:
    """A folder of artefacts; several processes may share it.

    Args:
        wait_seconds: how long another process's build of the same artefact is waited for.
    """

    def __init__(self, root: Path, wait_seconds: float = 7_200.0) -> None:
        self.root, self._wait_seconds = root, wait_seconds

    def ensure(
        self, key: ArtefactKey, build: Build, *, rebuild: bool = False, report: Progress = lambda _: None
    ) -> Artefact:
        """The artefact of a key, built if it is not there or damaged.

        Args:
            report: that another process is waited for; may stop that.

        Raises BackendError when another process builds it for longer than is waited.
        """
        digest = key.digest
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(digest, report):
            if not rebuild and (self.root / digest).exists():
                try:
                    return self.read(digest)
                except ArtefactError as error:
                    log.warning("artefact rejected; building it again", reason=str(error))
            return self._build(key, build)

    @contextmanager
    def _locked(self, digest: str, report: Progress) -> Iterator[None]:
        end = time.monotonic() + self._wait_seconds
        while True:
            try:
                with FileLock(
                    self.root / f"{digest}.lock", timeout=max(0.0, min(_SLICE, end - time.monotonic()))
                ):
                    yield
                    return
            except Timeout:
                if report(f"{digest}: another process is building it") is False:
                    raise BackendError("waiting for another process's build was stopped") from None
                if time.monotonic() >= end:
                    raise BackendError(
                        f"{self.root / digest}: another process has been building it for "
                        f"{self._wait_seconds:.0f} s; wait for it, or end it"
                    ) from None

    def read(self, digest: str) -> Artefact:
        """An artefact, every file checked. Raises ArtefactError naming the file at fault."""
        folder = self.root / digest
        manifest = _manifest(folder)
        key = manifest["key"]
        if _digest(key) != digest:
            raise ArtefactError(f"{folder / MANIFEST}: it was built for something else")
        files = []
        for entry in manifest["files"]:
            if Path(str(entry["name"])).name != entry["name"]:
                raise ArtefactError(f"{folder / MANIFEST}: {entry['name']!r} is no file of its own folder")
            path = folder / str(entry["name"])
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                size = path.stat().st_size if path.is_file() else 0
                raise ArtefactError(f"{path}: {size} bytes, not the {entry['bytes']} of its manifest")
            if _sha256(path) != entry["sha256"]:
                raise ArtefactError(f"{path}: SHA-256 differs from its manifest's")
            files.append((path, bool(entry["loaded"])))
        return Artefact(
            folder,
            key,
            tuple(path for path, loaded in files if loaded),
            manifest["facts"],
            manifest["built"],
            sum(entry["bytes"] for entry in manifest["files"]),
        )

    def manifests(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every readable manifest by digest, the newest first; files are not checked."""
        found = []
        for path in self.root.glob(f"{'[0-9a-f]' * 32}/{MANIFEST}"):  # not what is being built
            try:
                found.append((path.parent.name, _manifest(path.parent)))
            except ArtefactError as error:
                log.warning("artefact skipped", reason=str(error))
        yield from sorted(found, key=lambda item: str(item[1]["built"]), reverse=True)

    def _build(self, key: ArtefactKey, build: Build) -> Artefact:
        folder, made = self.root / key.digest, self.root / f"{key.digest}.part"
        shutil.rmtree(made, ignore_errors=True)  # of a build that was cut off; we hold its lock
        made.mkdir()
        try:
            loaded, facts = build(made)
            names = {path.name for path in loaded}
            order = [path.name for path in loaded] + sorted(
                path.name for path in made.iterdir() if path.name not in names
            )
            files = [
                {
                    "name": name,
                    "bytes": (made / name).stat().st_size,
                    "sha256": _sha256(made / name),
                    "loaded": name in names,
                }
                for name in order
            ]
            built = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {"key": key.as_dict(), "files": files, "facts": facts, "built": built}
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1, default=list), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)  # noqa: PTH105  Path.replace says nothing of folders
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return self.read(key.digest)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        missing = {"key", "files", "facts", "built"} - set(manifest)
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(f"{folder / MANIFEST}: {error}") from error
    if missing:
        raise ArtefactError(f"{folder / MANIFEST}: without {', '.join(sorted(missing))}")
    found: dict[str, Any] = manifest
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
