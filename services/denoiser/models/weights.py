"""Loading safetensors weights: everything is checked before a tensor is allocated."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # floating types a network is stored in
_MAX_HEADER = 64 << 20  # bytes; Wan's 14B index is a few hundred kB


class WeightsError(Exception):
    """A weights file that does not hold the network it should; the message names file and tensor."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


@dataclass(frozen=True)
class _Entry:
    """One tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, _Entry]:
    """The tensors that a safetensors file says it holds, checked against the file's length.

    Reads the header alone. Raises WeightsError when the file is missing, foreign or truncated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
                raise WeightsError(path, f"not a safetensors file, or truncated in its header ({size} bytes)")
            raw = stream.read(length)
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    try:
        entries = {k: _entry(v) for k, v in json.loads(raw).items() if k != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(path, f"not a safetensors file: its header cannot be parsed ({error})") from error
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != end or entry.end < end:
            raise WeightsError(path, f"tensor {name}: starts at byte {entry.start}, expected {end}")
        end = entry.end
    if (promised := 8 + length + end) != size:
        raise WeightsError(path, f"holds {size} bytes, its header promises {promised}: truncated or altered")
    return entries


def _entry(value: Any) -> _Entry:
    start, end = value["data_offsets"]
    return _Entry(str(value["dtype"]), tuple(int(n) for n in value["shape"]), int(start), int(end))


def weight_files(path: Path) -> list[Path]:
    """The files behind a path: itself, or the shards named by a `*.index.json`, in name order."""
    if path.suffix != ".json":
        return [path]
    try:
        shards = set(json.loads(path.read_bytes())["weight_map"].values())
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(path, f"not an index of safetensors shards ({error})") from error
    for shard in shards:
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(shard)):
            raise WeightsError(path, f"shard {shard!r}: must be a *.safetensors file beside the index")
    return [path.parent / str(shard) for shard in sorted(shards)]


def weights_digest(path: Path) -> str:
    """SHA-256, lower-case hex, of the weight files' bytes in name order (one file: its own digest)."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise WeightsError(file, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def check_weights(path: Path, expected: Mapping[str, torch.Size]) -> None:
    """Compare a file's or an index's tensors with the expected names and shapes, without reading them.

    Raises WeightsError for a missing, foreign or repeated tensor, another shape, another type.
    """
    found: dict[str, Path] = {}
    for file in weight_files(path):
        for name, entry in read_header(file).items():
            if name not in expected:
                raise WeightsError(file, f"tensor {name}: no such parameter in this architecture")
            if name in found:
                raise WeightsError(file, f"tensor {name}: also in {found[name].name}")
            if entry.dtype not in _BYTES:
                raise WeightsError(file, f"tensor {name}: type {entry.dtype}, expected {' or '.join(_BYTES)}")
            if entry.shape != tuple(expected[name]):
                raise WeightsError(
                    file, f"tensor {name}: shape {list(entry.shape)}, expected {list(expected[name])}"
                )
            size = math.prod(entry.shape) * _BYTES[entry.dtype]
            if entry.end - entry.start != size:
                raise WeightsError(file, f"tensor {name}: {entry.end - entry.start} bytes, expected {size}")
            found[name] = file
    if missing := sorted(set(expected) - set(found)):
        raise WeightsError(path, f"tensor {missing[0]}: missing (and {len(missing) - 1} more)")


def load_weights(
    path: Path,
    expected: Mapping[str, torch.Size],
    *,
    sha256: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """State dict of the expected tensors, converted to `dtype`.

    `path` is a safetensors file or a `*.safetensors.index.json`; `sha256` is what `weights_digest` must
    be. Raises WeightsError before any tensor is allocated.
    """
    check_weights(path, expected)
    if sha256 is not None and (found := weights_digest(path)) != sha256.lower():
        raise WeightsError(path, f"sha256 {found}, expected {sha256.lower()}: not the weights of this model")
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= {k: v.to(dtype) for k, v in load_file(file, device=str(device)).items()}
    return state
