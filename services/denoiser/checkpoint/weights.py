"""Reading safetensors weights: everything is checked before a tensor is allocated."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # floating types a network is stored in
_MAX_HEADER = 64 << 20  # bytes; Wan's 14B index is a few hundred kB


class WeightsError(Exception):
    """A weights file that does not hold the network it should; the message names file and tensor."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


@dataclass(frozen=True)
class Entry:
    """One tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds. `metadata`: what its writer noted, strings by name."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The tensors of a safetensors file, their sizes checked against the file's length.

    Reads the header alone. Raises WeightsError when the file is missing, foreign or truncated, or where a
    tensor is of a type in which no network is stored.
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
        found = json.loads(raw)
        metadata = {str(k): str(v) for k, v in found.pop("__metadata__", {}).items()}
        entries = {k: _entry(v) for k, v in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(path, f"not a safetensors file: its header cannot be parsed ({error})") from error
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.dtype not in _BYTES:
            raise WeightsError(path, f"tensor {name}: type {entry.dtype}, expected {' or '.join(_BYTES)}")
        if entry.start != end or entry.end < end:
            raise WeightsError(path, f"tensor {name}: starts at byte {entry.start}, expected {end}")
        if (length_of := entry.end - entry.start) != (
            bytes_of := math.prod(entry.shape) * _BYTES[entry.dtype]
        ):
            raise WeightsError(path, f"tensor {name}: {length_of} bytes, expected {bytes_of}")
        end = entry.end
    if (promised := 8 + length + end) != size:
        raise WeightsError(path, f"holds {size} bytes, its header promises {promised}: truncated or altered")
    return Header(entries, metadata)


def _entry(value: Any) -> Entry:
    start, end = value["data_offsets"]
    return Entry(str(value["dtype"]), tuple(int(n) for n in value["shape"]), int(start), int(end))


def weight_files(path: Path) -> list[Path]:
    """The files behind a path, in name order: itself, the shards of a `*.index.json`, or those of a folder.

    A folder, as diffusers saves one, holds either one index or one safetensors file.
    """
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise WeightsError(
                path, f"must hold one *.safetensors file or one index of shards, not {len(found)}"
            )
        return weight_files(found[0])
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


def verified_digest(path: Path, sha256: str | None) -> str:
    """The `weights_digest`. Raises WeightsError where another was promised."""
    found = weights_digest(path)
    if sha256 is not None and found != sha256.lower():
        raise WeightsError(path, f"sha256 {found}, expected {sha256.lower()}: not the weights of this model")
    return found


def check_weights(path: Path, expected: Mapping[str, torch.Size], rename: Callable[[str], str] = str) -> None:
    """Compare the tensors of weight files with the expected names and shapes, without reading them.

    Args:
        rename: what a name in the file is called in `expected`.

    Raises WeightsError for a missing, foreign or repeated tensor, another shape, another type.
    """
    found: dict[str, Path] = {}
    for file in weight_files(path):
        for name, entry in read_header(file).entries.items():
            ours = rename(name)
            if ours not in expected:
                raise WeightsError(file, f"tensor {name}: no such parameter in this architecture")
            if ours in found:
                raise WeightsError(file, f"tensor {name}: also in {found[ours].name}")
            if entry.shape != tuple(expected[ours]):
                raise WeightsError(
                    file, f"tensor {name}: shape {list(entry.shape)}, expected {list(expected[ours])}"
                )
            found[ours] = file
    if missing := sorted(set(expected) - set(found)):
        raise WeightsError(path, f"tensor {missing[0]}: missing (and {len(missing) - 1} more)")


def read_tensors(path: Path, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of weight files, one at a time: the whole never lies in memory twice."""
    for file in weight_files(path):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.offset_keys():
                yield name, tensors.get_tensor(name)


def load_weights(
    path: Path,
    expected: Mapping[str, torch.Size],
    *,
    rename: Callable[[str], str] = str,
    convert: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor.float(),
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """State dict of the expected tensors; raises WeightsError before any is allocated (see `check_weights`).

    Args:
        path: a safetensors file, an index of shards, or a folder with either.
        rename: what a name in the file is called in `expected`.
        convert: a parameter's name and its tensor as stored -> the tensor to use.
    """
    check_weights(path, expected, rename)
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(path, device):
        ours = rename(name)
        state[ours] = convert(ours, tensor)
    return state
