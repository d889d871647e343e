"""Finished videos in a directory: one file each, complete on disk before any row refers to it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from services.runtime.startup import StartupError
from services.scheduler.jobs.passing_faults import find_passing_fault
from services.scheduler.jobs.video_store import OWNERS, Item, StoredJob, VideoStore

T = TypeVar("T")

SETTING: Final = "CHORUS_SCHEDULER_VIDEO_DIR"
_PART: Final = ".part"


class VideoFiles(VideoStore):
    """A directory of `<job id>/<attempt>.mp4` and `.jpg`.

    Earlier versions wrote `<job id>.mp4`, which is still read and removed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def open(self) -> None:
        """Creates the directory. Raises StartupError if it cannot be created or written to."""
        try:
            await self._run(lambda: self._directory.mkdir(parents=True, exist_ok=True))
        except OSError as error:
            raise StartupError(f"{SETTING}: {self._directory} cannot be created: {error.strerror}") from error
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise StartupError(f"{SETTING}: {self._directory} is not writable for this process")

    async def close(self) -> None:
        """Does nothing: no file stays open between two calls."""

    async def make_url(self, job_id: str, attempt: int, seconds: int) -> str | None:
        return None

    async def _run(self, call: Callable[[], T]) -> T:
        with _passing_faults():
            return await asyncio.to_thread(call)

    def _write(self, key: str, data: bytes, media_type: str) -> None:
        path = self._directory / key
        part = path.with_name(path.name + _PART)
        try:
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            # A file's name is part of its directory, and that one's name of the directory above.
            _sync(path.parent)
            _sync(self._directory)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _find_size(self, key: str) -> int | None:
        path = self._find(key)
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def _read(self, key: str, offset: int, length: int) -> bytes | None:
        try:
            with self._find(key).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            return None

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self._directory / key
            path.unlink(missing_ok=True)
            path.with_name(path.name + _PART).unlink(missing_ok=True)
            with suppress(OSError):  # absent, or with the items of another attempt
                path.parent.rmdir()

    def _delete_job(self, job_id: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._directory / job_id)
        former = self._former_path(job_id)
        former.unlink(missing_ok=True)
        former.with_suffix(_PART).unlink(missing_ok=True)

    def _walk(self) -> Iterator[StoredJob]:
        with os.scandir(self._directory) as found:
            for entry in found:
                if entry.name == OWNERS:
                    continue
                if entry.is_dir() or entry.name.endswith((Item.VIDEO.value, _PART)):
                    # A job may be removed meanwhile.
                    with suppress(FileNotFoundError):
                        inside = [*Path(entry.path).iterdir()] if entry.is_dir() else []
                        times = [path.stat().st_mtime for path in (Path(entry.path), *inside)]
                        yield StoredJob(entry.name.partition(".")[0], max(times))

    def _list_folder(self, folder: str) -> list[str]:
        path = self._directory / folder
        return [each.name for each in path.iterdir() if each.suffix != _PART] if path.exists() else []

    def _find(self, key: str) -> Path:
        """Returns the path of an item: where an earlier version wrote it, if it is there alone."""
        path = self._directory / key
        if path.suffix == Item.VIDEO.value and not path.exists():
            former = self._former_path(path.parent.name)
            return former if former.exists() else path
        return path

    def _former_path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}{Item.VIDEO.value}"


def _sync(path: Path) -> None:
    """Makes the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _passing_faults() -> Iterator[None]:
    """Converts the errors inside the block that may pass."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        fault = find_passing_fault(error, "the directory of the videos", SETTING)
        if fault is None:
            raise
        raise fault from error
