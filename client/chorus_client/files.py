"""Atomic writes of files."""

from __future__ import annotations

import random
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> Path:
    """Writes a temporary file next to `path` and renames it, so that no reader sees a partial file."""
    part = path.with_name(f".{path.name}.{random.getrandbits(32):08x}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
