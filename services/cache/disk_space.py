"""Full disks: how they are recognised, and a reserve that leaves room for deletions."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from chorus_rpc.errors import DISK_FULL, ChorusError
from minio.error import S3Error

from services.object_store.faults import is_storage_full

# No space, no quota, and a limit on the size of files (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = tuple(f"[Errno {number}]" for number in _FULL)


def is_full(error: BaseException) -> bool:
    """Returns whether a store failed because it has no space left."""
    if isinstance(error, S3Error):
        return is_storage_full(error)
    if isinstance(error, OSError):
        return error.errno in _FULL
    # Milvus Lite passes on the text of the error.
    return any(text in str(error) for text in _FULL_TEXTS)


def disk_full(service: str) -> ChorusError:
    """Returns the error of a store without space; metadata `service` names it."""
    return ChorusError(
        DISK_FULL,
        f"the disk of the cache's {service} is full: free space there, or run `chorus cache purge`,"
        " which works on a full disk; until then nothing is admitted, and entries are still found",
        metadata={"service": "cache", "store": service},
    )


class DiskReserve:
    """File that occupies space, so that a deletion finds room on a full disk: it is written to a log first.

    Args:
        size_bytes: size of the file; 1 MiB is enough for the log of about 10,000 deletions.
    """

    def __init__(self, path: Path, size_bytes: int = 1 << 20) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def fill(self) -> bool:
        """Allocates the file unless it exists; returns whether as much space again is free.

        Leaves no part of the file if the disk is full.
        """
        if not self._path.exists():
            try:
                file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(file, 0, self._size_bytes)
                finally:
                    os.close(file)
            except OSError as error:
                self._path.unlink(missing_ok=True)
                if is_full(error):
                    return False
                raise
        return self._free_bytes() >= self._size_bytes

    def release_if_full(self) -> None:
        """Removes the file if less space than it occupies is free."""
        if self._free_bytes() < self._size_bytes:
            self.release()

    def release(self) -> bool:
        """Removes the file; returns whether it existed."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._path.parent).free
