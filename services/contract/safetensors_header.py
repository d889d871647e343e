"""Header of a safetensors file, validated before any tensor is allocated."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from chorus_rpc.chunks import BlobFault

_MAX_BLOB_HEADER_BYTES = 1 << 20
_MAX_RANK = 8
_FIELDS = {"dtype", "shape", "data_offsets"}

# Bytes of one value, by safetensors' name of the type.
_WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file. Two are equal if name, type and shape are.

    Attributes:
        dtype: safetensors' name of the type: F32, F16, BF16, …
        start, end: range of its bytes, counted from the end of the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True)
class SafetensorsHeader:
    """Content of a safetensors header.

    Attributes:
        tensors: headers of the tensors, in the order of their bytes.
        metadata: notes of the writer.
    """

    tensors: tuple[TensorHeader, ...]
    metadata: Mapping[str, str]


def parse_header(data: bytes) -> SafetensorsHeader:
    """Returns the header of a safetensors file in memory. Raises BlobFault as `read_header` does."""
    return read_header(io.BytesIO(data), len(data), _MAX_BLOB_HEADER_BYTES)


def parse_tensor_headers(data: bytes) -> list[TensorHeader]:
    """Returns the tensors of a safetensors file in memory. Raises BlobFault as `read_header` does."""
    return list(parse_header(data).tensors)


def read_header(stream: BinaryIO, size_bytes: int, max_header_bytes: int) -> SafetensorsHeader:
    """Reads the header at the start of a safetensors file, and nothing after it.

    Args:
        size_bytes: size of the whole file, which the header must account for.
        max_header_bytes: upper bound on the header.

    Raises BlobFault for a file that is truncated or not safetensors, and for tensors that overlap, leave gaps
    or do not have the bytes of their type and shape.
    """
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(max_header_bytes, size_bytes - 8):
        raise BlobFault(f"not a safetensors file, or truncated in its header ({size_bytes} bytes)")
    try:
        found = json.loads(
            stream.read(length).decode(), object_pairs_hook=_to_object, parse_constant=_reject_constant
        )
        metadata = {name: _parse_text(value) for name, value in found.pop("__metadata__", {}).items()}
        tensors = sorted(
            (_parse_tensor(name, value, size_bytes) for name, value in found.items()),
            key=lambda each: (each.start, each.end),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise BlobFault(
            f"not a safetensors file: its header cannot be parsed ({str(error)[:100]})"
        ) from error
    end = 0
    for tensor in tensors:
        name = tensor.name[:100]
        if tensor.dtype not in _WIDTHS:
            raise BlobFault(f"tensor {name}: unknown type {tensor.dtype[:100]}")
        if tensor.start != end:
            raise BlobFault(f"tensor {name}: starts at byte {tensor.start}, expected {end}")
        expected = math.prod(tensor.shape) * _WIDTHS[tensor.dtype]
        if tensor.end - tensor.start != expected:
            raise BlobFault(f"tensor {name}: {tensor.end - tensor.start} bytes, expected {expected}")
        end = tensor.end
    if (expected := 8 + length + end) != size_bytes:
        raise BlobFault(f"{size_bytes} bytes, but the header declares {expected}: truncated or altered")
    return SafetensorsHeader(tuple(tensors), metadata)


def _parse_tensor(name: str, value: Any, size_bytes: int) -> TensorHeader:
    """Parses one tensor. Raises ValueError for numbers whose product or text would take long to compute.

    Accepts only what safetensors' own reader accepts: an entry that it cannot read is no donor.
    """
    if value.keys() != _FIELDS:
        raise ValueError(f"tensor {name[:100]}: must have the fields {', '.join(sorted(_FIELDS))}")
    start, end = _parse_integers(value["data_offsets"])
    if not 0 <= start <= end <= size_bytes:
        raise ValueError(f"tensor {name[:100]}: its range of bytes is outside the file")
    shape = tuple(_parse_integers(value["shape"]))
    if len(shape) > _MAX_RANK:
        raise ValueError(f"tensor {name[:100]}: more than {_MAX_RANK} dimensions")
    if not all(0 <= extent < 1 << 63 for extent in shape):
        raise ValueError(f"tensor {name[:100]}: its shape is out of bounds")
    return TensorHeader(name, _parse_text(value["dtype"]), shape, start, end)


def _parse_integers(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise TypeError("shape and data_offsets must be lists of integers")
    return value


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("metadata and types must be text")
    value.encode()  # no half of a surrogate pair, which an error status could not carry
    return value


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {_parse_text(name): value for name, value in pairs}
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
