"""Atomic writes of files."""

from __future__ import annotations

import random
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> Path:
    """Writes a temporary file next to `path` and renames it, so that no reader sees a partial file.

    A symbolic link stays, and the file that it names is replaced. A device or a pipe, such as /dev/null, is
    written to directly: a rename would replace the device itself. Raises OSError that names `path`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return path
    target = path.resolve() if path.is_symlink() else path
    part = target.with_name(f".{target.name}.{random.getrandbits(32):08x}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the caller's path, not the temporary file
        raise
    finally:
        part.unlink(missing_ok=True)
    return path
