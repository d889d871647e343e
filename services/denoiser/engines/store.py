"""Store of built engines on disk, keyed by everything they depend on and verified before use.

Each key has a folder named by its digest; the manifest is written last. Two processes that build the same key
wait for each other. An engine that is damaged or does not match its manifest is built again.
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

log = get_logger("denoiser.engines")

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 22
_POLL_SECONDS = 1.0  # interval at which a wait can be cancelled


@dataclass(frozen=True)
class EngineKey:
    """Key of an engine: all that its files depend on.

    Attributes:
        model_id: Id of the model.
        weights_digest: SHA-256 of the weights.
        adapters: Digest and scale of each adapter merged into the weights.
        network: Sizes of the network by name.
        graph: Version of the graph and of its export.
        runtime: Module that runs the engine, with its version, such as "tensorrt_rtx 1.7.1.116".
        target: Device that runs the engine, such as "sm_89" or "cpu".
        precision: "float32", "float16" or "bfloat16".
        fp8: Whether the matrices of the blocks are 8-bit floats.
        blocks_each: Number of blocks in each part; 0 for a single part.
        profile: Sizes that the engine is built for.
        options: Other options of the builder.
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

    def to_json(self) -> dict[str, Any]:
        """Returns the key in the form of the manifest, with lists instead of tuples."""
        fields = {**asdict(self), "network": dict(self.network), "options": dict(self.options)}
        content: dict[str, Any] = json.loads(json.dumps(fields, default=list))
        return content

    @property
    def digest(self) -> str:
        """Digest of the key, 32 hex digits."""
        return _digest(self.to_json())


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class BuiltEngine:
    """Engine on disk: one or more files that a backend loads.

    Attributes:
        folder: Folder of the engine.
        key: Key in the form of the manifest.
        files: Files to load, in order.
        facts: Facts about the build.
        built: Time of the build, ISO 8601.
        size_bytes: Size of all files, in bytes.
    """

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


class EngineError(BackendError):
    """Fault of an engine: missing, or different from its manifest."""


# Writes the engine's files to a folder. Returns the files to load, in order, and facts about the build.
Build = Callable[[Path], tuple[list[Path], dict[str, Any]]]


class EngineStore:
    """Folder of built engines. Several processes can share it.

    Args:
        wait_seconds: Upper bound on the wait for another process that builds the same engine, in seconds.
    """

    def __init__(self, root: Path, wait_seconds: float = 7_200.0) -> None:
        self.root, self._wait_seconds = root, wait_seconds

    def ensure(
        self, key: EngineKey, build: Build, *, rebuild: bool = False, report: Progress = lambda _: None
    ) -> BuiltEngine:
        """Returns the engine of a key and builds it if it is missing or damaged.

        Args:
            rebuild: Whether to build an intact engine again.
            report: Progress callback during a wait for another process. Return False to cancel the wait.

        Raises:
            BackendError: Another process is still building the engine after `wait_seconds`.
        """
        digest = key.digest
        # Without the lock first: a prebuilt engine may be in a folder that cannot be written.
        if not rebuild and (engine := self._find(digest)) is not None:
            return engine
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._locked(digest, report):
                if not rebuild and (engine := self._find(digest)) is not None:
                    return engine  # another process built it in the meantime
                return self._build(key, build)
        except OSError as error:
            raise BackendError(
                f"{self.root}: cannot be written: {error}: "
                "let CHORUS_DENOISER_ENGINES name a writable directory with free space"
            ) from error

    def _find(self, digest: str) -> BuiltEngine | None:
        """Returns an engine; None if it is missing or damaged."""
        if not (self.root / digest).exists():
            return None
        try:
            return self.read(digest)
        except (EngineError, OSError) as error:
            log.warning("engine rejected; building it again", reason=str(error))
            return None

    def prune(self, used: BuiltEngine, keep: int) -> None:
        """Deletes what interrupted builds left, and old engines of the same model and runtime.

        Folders that another process is building, and those that cannot be deleted, stay.

        Args:
            used: Engine in use, which stays.
            keep: Number of other engines to keep, the newest ones.
        """
        model, runtime = used.key["model_id"], _runtime_name(used.key)
        old = [
            digest
            for digest, manifest in self.manifests()
            if digest != used.digest
            and manifest["key"]["model_id"] == model
            and _runtime_name(manifest["key"]) == runtime
        ][keep:]
        for folder in (*(self.root / digest for digest in old), *self.root.glob(f"{'[0-9a-f]' * 32}.part")):
            try:
                with FileLock(self.root / f"{folder.stem}.lock", timeout=0):
                    shutil.rmtree(folder)
            except (Timeout, OSError):
                continue
            log.info("engine deleted", folder=str(folder))

    @contextmanager
    def _locked(self, digest: str, report: Progress) -> Iterator[None]:
        end = time.monotonic() + self._wait_seconds
        while True:
            try:
                with FileLock(
                    self.root / f"{digest}.lock",
                    timeout=max(0.0, min(_POLL_SECONDS, end - time.monotonic())),
                ):
                    yield
                    return
            except Timeout:
                if report(f"{digest}: another process is building it") is False:
                    raise BackendError("the wait for another process's build was cancelled") from None
                if time.monotonic() >= end:
                    raise BackendError(
                        f"{self.root / digest}: another process has been building it for "
                        f"{self._wait_seconds:.0f} s (CHORUS_DENOISER_ENGINE_WAIT_SECONDS);"
                        " wait for it or stop it"
                    ) from None

    def read(self, digest: str) -> BuiltEngine:
        """Returns an engine after verifying every file. Raises EngineError naming the invalid file."""
        folder = self.root / digest
        manifest = _read_manifest(folder)
        key = manifest["key"]
        if _digest(key) != digest:
            raise EngineError(f"{folder / MANIFEST}: its key does not match the folder's name")
        files = []
        for entry in manifest["files"]:
            if Path(str(entry["name"])).name != entry["name"]:
                raise EngineError(f"{folder / MANIFEST}: {entry['name']!r} is not a file of its folder")
            path = folder / str(entry["name"])
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                size = path.stat().st_size if path.is_file() else 0
                raise EngineError(f"{path}: has {size} bytes, not {entry['bytes']} as in its manifest")
            if _sha256(path) != entry["sha256"]:
                raise EngineError(f"{path}: SHA-256 differs from its manifest")
            files.append((path, bool(entry["loaded"])))
        return BuiltEngine(
            folder,
            key,
            tuple(path for path, loaded in files if loaded),
            manifest["facts"],
            manifest["built"],
            sum(entry["bytes"] for entry in manifest["files"]),
        )

    def manifests(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields every readable manifest with its digest, newest first. Files are not verified."""
        manifests = []
        for path in self.root.glob(f"{'[0-9a-f]' * 32}/{MANIFEST}"):  # excludes unfinished builds
            try:
                manifests.append((path.parent.name, _read_manifest(path.parent)))
            except EngineError as error:
                log.warning("engine ignored", reason=str(error))
        yield from sorted(manifests, key=lambda item: str(item[1]["built"]), reverse=True)

    def _build(self, key: EngineKey, build: Build) -> BuiltEngine:
        folder, partial = self.root / key.digest, self.root / f"{key.digest}.part"
        shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted build; we hold its lock
        partial.mkdir()
        try:
            loaded, facts = build(partial)
            names = {path.name for path in loaded}
            order = [path.name for path in loaded] + sorted(
                path.name for path in partial.iterdir() if path.name not in names
            )
            files = [
                {
                    "name": name,
                    "bytes": (partial / name).stat().st_size,
                    "sha256": _sha256(partial / name),
                    "loaded": name in names,
                }
                for name in order
            ]
            built = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {"key": key.to_json(), "files": files, "facts": facts, "built": built}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, default=list), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)  # noqa: PTH105  Path.replace is not documented for folders
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return self.read(key.digest)


def _runtime_name(key: Mapping[str, Any]) -> str:
    """Returns the module of a key's runtime without its version."""
    return str(key["runtime"]).partition(" ")[0]


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        missing = {"key", "files", "facts", "built"} - set(manifest)
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{folder / MANIFEST}: {error}") from error
    if missing:
        raise EngineError(f"{folder / MANIFEST}: lacks {', '.join(sorted(missing))}")
    content: dict[str, Any] = manifest
    return content


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
